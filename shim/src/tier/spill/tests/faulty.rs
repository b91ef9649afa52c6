//! A disk that fails as it is told to.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::queue::{Direction, Disk, Piece};
use super::super::store::{Config, Store};
use super::Memory;

/// What happens to a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    None,
    /// It fails by this `errno`, and nothing is moved.
    Errno(i32),
    /// Only so many bytes of it are moved.
    Short(usize),
    /// It ends so much later.
    Stall(Duration),
    /// A byte is wrong: of what is read, or of what lands on the disk.
    Corrupt,
    /// It says that it was written, and was not.
    Lost,
}

/// Chooses by the request and by how many there were before.
type Plan = Box<dyn FnMut(usize, &Piece) -> Fault + Send>;

struct Faulty {
    disk: Box<dyn Disk>,
    plan: Arc<Mutex<Plan>>,
    n: usize,
    on_their_way: HashMap<u32, (Piece, Fault)>,
    held: Vec<(Instant, (u32, i32))>,
}

impl Disk for Faulty {
    fn start(&mut self, id: u32, mut piece: Piece) -> io::Result<()> {
        let fault = (self.plan.lock().unwrap())(self.n, &piece);
        self.n += 1;
        self.on_their_way.insert(id, (piece, fault));
        match fault {
            Fault::Errno(errno) => self.held.push((Instant::now(), (id, -errno))),
            Fault::Lost => self.held.push((Instant::now(), (id, piece.len as i32))),
            Fault::Short(len) => {
                // What O_DIRECT takes, and not what it goes on from everywhere.
                piece.len = (len / 4096 * 4096).clamp(4096, piece.len);
                self.disk.start(id, piece)?;
            }
            Fault::Corrupt if piece.direction == Direction::Write => {
                // What is in memory stays as it is. The copy is never given back.
                let copy = Memory::new(piece.len);
                let (from, to) = (piece.address as *const u8, copy.start as *mut u8);
                // SAFETY: memory of a request that has not ended, and as much of our own.
                unsafe { std::ptr::copy_nonoverlapping(from, to, piece.len) };
                piece.address = copy.start;
                flip(&piece);
                self.disk.start(id, piece)?;
            }
            _ => self.disk.start(id, piece)?,
        }
        Ok(())
    }

    fn collect(&mut self, patience: Duration, ended: &mut Vec<(u32, i32)>) -> io::Result<()> {
        let patience = match self.held.is_empty() {
            true => patience,
            false => patience.min(Duration::from_millis(1)),
        };
        let mut came = Vec::new();
        self.disk.collect(patience, &mut came)?;
        for (id, result) in came {
            let (piece, fault) = self.on_their_way[&id];
            match fault {
                Fault::Stall(time) => self.held.push((Instant::now() + time, (id, result))),
                Fault::Corrupt if piece.direction == Direction::Read => {
                    flip(&piece);
                    ended.push((id, result));
                }
                _ => ended.push((id, result)),
            }
        }
        let now = Instant::now();
        self.held.retain(|(at, end)| {
            if *at <= now {
                ended.push(*end);
            }
            *at > now
        });
        Ok(())
    }
}

fn flip(piece: &Piece) {
    // SAFETY: memory of a request that has not been told as ended.
    unsafe { *((piece.address + piece.len / 2) as *mut u8) ^= 0x10 };
}

/// A store on such a disk.
pub fn open(
    config: Config,
    memory: &Memory,
    plan: impl FnMut(usize, &Piece) -> Fault + Send + 'static,
) -> Store {
    let plan: Arc<Mutex<Plan>> = Arc::new(Mutex::new(Box::new(plan)));
    let wrap = |disk| -> Box<dyn Disk> {
        Box::new(Faulty {
            disk,
            plan,
            n: 0,
            on_their_way: HashMap::new(),
            held: Vec::new(),
        })
    };
    // SAFETY: never unmapped.
    unsafe { Store::over(config, vec![memory.region()], Duration::from_secs(60), wrap) }.unwrap()
}
