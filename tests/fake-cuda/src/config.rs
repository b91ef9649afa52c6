//! What the environment asks for, read once at first use.
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use greenboost_abi::CUresult;

use crate::phys::GRANULE;

/// Devices that can be simulated in one process.
pub(crate) const MAX_DEVICES: usize = 16;

pub(crate) struct Config {
    pub devices: usize,
    pub vram: u64,
    pub taken: u64,
    pub host: Option<u64>,
    pub driver: u32,
    pub host_numa: bool,
    pub mig: bool,
    pub blocks: Vec<Block>,
    pub release: Option<PathBuf>,
    pub host_export: bool,
    pub peers: bool,
    pub failures: Vec<Failure>,
    pub report: Option<PathBuf>,
    pub trace: Option<PathBuf>,
    pub leaks: bool,
    pub link: Option<f64>,
    pub pcie: Pcie,
    pub shared: Option<PathBuf>,
    /// Bytes that pools grow by.
    pub pool_granule: u64,
    /// What NVML says that a device sends and receives over PCIe, KB/s.
    pub traffic: (u32, u32),
    /// What NVML gives as reasons for lower clocks.
    pub throttle: u64,
}

/// What NVML says of the PCIe link.
#[derive(Clone, Copy)]
pub(crate) struct Pcie {
    pub generation: u32,
    pub width: u32,
    pub max_generation: u32,
    pub max_width: u32,
}

impl Pcie {
    /// `4x8` or `4x8/5x16`: as it runs, and as it could.
    fn parse(text: &str) -> Option<Pcie> {
        let one = |text: &str| {
            let (generation, width) = text.split_once('x')?;
            Some((generation.parse().ok()?, width.parse().ok()?))
        };
        let (now, most) = text.split_once('/').unwrap_or((text, text));
        let ((generation, width), (max_generation, max_width)) = (one(now)?, one(most)?);
        Some(Pcie {
            generation,
            width,
            max_generation,
            max_width,
        })
    }
}

/// One rule of `FAKE_CUDA_FAIL`: the n-th call (and, if `later`, all after it) returns `result`.
pub(crate) struct Failure {
    name: String,
    nth: u64,
    later: bool,
    result: CUresult,
    calls: AtomicU64,
}

impl Failure {
    fn parse(text: &str) -> Option<Failure> {
        let mut parts = text.trim().split(':');
        let name = parts.next()?.to_owned();
        let when = parts.next()?;
        let result = parts.next()?.parse().ok()?;
        let (when, later) = match when.strip_suffix('+') {
            Some(when) => (when, true),
            None => (when, false),
        };
        let nth = when.parse().ok()?;
        Some(Failure {
            name,
            nth,
            later,
            result,
            calls: AtomicU64::new(0),
        })
    }

    /// Counts this call if the rule is about it, and says what it must return.
    pub(crate) fn strike(&self, exported: &str, asked: &str) -> Option<CUresult> {
        if self.name != exported && self.name != asked {
            return None;
        }
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        (call == self.nth || (self.later && call > self.nth)).then_some(self.result)
    }
}

/// One rule of `FAKE_CUDA_BLOCK`: a call does nothing for so many milliseconds before it begins, or until the file
/// `FAKE_CUDA_RELEASE` exists.
pub(crate) struct Block {
    name: String,
    which: Which,
    ms: u64,
    calls: AtomicU64,
}

/// The n-th call, or the first one of a thread with this name.
enum Which {
    Nth(u64),
    Of(String),
}

impl Block {
    fn parse(text: &str) -> Option<Block> {
        let mut parts = text.trim().split(':');
        let (name, which) = (parts.next()?.to_owned(), parts.next()?);
        Some(Block {
            name,
            which: which
                .parse()
                .map_or_else(|_| Which::Of(which.to_owned()), Which::Nth),
            ms: parts.next()?.parse().ok()?,
            calls: AtomicU64::new(0),
        })
    }

    /// Counts this call if the rule is about it, and waits if it is its turn.
    pub(crate) fn stand(&self, exported: &str, asked: &str) {
        if self.name != exported && self.name != asked {
            return;
        }
        let turn = match &self.which {
            Which::Nth(n) => *n,
            Which::Of(thread) if thread_name() == *thread => 1,
            Which::Of(_) => return,
        };
        if self.calls.fetch_add(1, Ordering::Relaxed) + 1 == turn {
            self.wait();
        }
    }

    fn wait(&self) {
        let end = Instant::now() + Duration::from_millis(self.ms);
        let released = || config().release.as_ref().is_some_and(|path| path.exists());
        while Instant::now() < end && !released() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The name that the calling thread gave itself, as the kernel has it.
fn thread_name() -> String {
    let text = std::fs::read_to_string("/proc/thread-self/comm").unwrap_or_default();
    text.trim_end().to_owned()
}

fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn read() -> Config {
    let text = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let bytes = |name: &str| text(name).and_then(|v| size(&v));
    let path = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let number = |name: &str| text(name).and_then(|v| v.trim().parse::<u64>().ok());
    Config {
        devices: number("FAKE_CUDA_DEVICES").map_or(1, |n| (n as usize).min(MAX_DEVICES)),
        vram: bytes("FAKE_CUDA_VRAM").unwrap_or(1 << 30),
        taken: bytes("FAKE_CUDA_VRAM_TAKEN").unwrap_or(0),
        host: bytes("FAKE_CUDA_HOST"),
        driver: number("FAKE_CUDA_DRIVER").map_or(13000, |n| n as u32),
        host_numa: number("FAKE_CUDA_NO_HOST_NUMA") != Some(1),
        mig: number("FAKE_CUDA_MIG") == Some(1),
        blocks: text("FAKE_CUDA_BLOCK")
            .map(|v| v.split(',').filter_map(Block::parse).collect())
            .unwrap_or_default(),
        release: path("FAKE_CUDA_RELEASE"),
        peers: number("FAKE_CUDA_NO_PEERS") != Some(1),
        host_export: number("FAKE_CUDA_NO_HOST_EXPORT") != Some(1),
        failures: text("FAKE_CUDA_FAIL")
            .map(|v| v.split(',').filter_map(Failure::parse).collect())
            .unwrap_or_default(),
        report: path("FAKE_CUDA_REPORT"),
        trace: path("FAKE_CUDA_TRACE"),
        leaks: number("FAKE_CUDA_LEAKS") == Some(1),
        link: bytes("FAKE_CUDA_LINK").filter(|n| *n > 0).map(|n| n as f64),
        pcie: text("FAKE_CUDA_PCIE")
            .and_then(|v| Pcie::parse(v.trim()))
            .unwrap_or(Pcie {
                generation: 5,
                width: 16,
                max_generation: 5,
                max_width: 16,
            }),
        shared: path("FAKE_CUDA_SHARED"),
        pool_granule: bytes("FAKE_CUDA_POOL_GRANULE")
            .map_or(32 << 20, |n| n.max(1).next_multiple_of(GRANULE)),
        traffic: text("FAKE_CUDA_TRAFFIC")
            .and_then(|v| {
                let (sent, received) = v.split_once(':')?;
                Some((sent.trim().parse().ok()?, received.trim().parse().ok()?))
            })
            .unwrap_or_default(),
        throttle: number("FAKE_CUDA_THROTTLE").unwrap_or(0),
    }
}

pub(crate) fn config() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(read)
}
