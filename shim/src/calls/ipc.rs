//! Legacy handles of memory that the shim backs: the driver makes none for mapped memory (measured: 1), so they are made here.
//!
//! Between processes of one job the memory itself travels, as descriptors that the launcher keeps ([`share`]). Whoever
//! asks for a handle leaves them there; whoever opens it maps the same memory. What was left is never moved and never
//! kept for another allocation. To a process outside of the job such a handle is nothing: the driver refuses it there.

use std::ffi::c_uint;
use std::sync::Once;

use greenboost_abi::*;
use greenboost_wire::alive;
use greenboost_wire::ledger::Tier;
use greenboost_wire::record::Kind;
use greenboost_wire::share::{Facts, Piece, Token};

use super::memory;
use crate::hooks::real;
use crate::process::{self, Job};
use crate::share::{self, Failure};
use crate::tier::chunk::GRAIN;
use crate::tier::device::{self, Device};
use crate::tier::map::{self, Allocation, Backing, Handle, Opened, Place, Ties};
use crate::tier::range::Range;
use crate::tier::spare::Chunk;
use crate::tier::{drain, free as tier_free, gate, pools, staging};
use crate::{driver, telemetry};

/// First word of a handle that was made here.
const MAGIC: [u8; 8] = *b"gbshare\x01";

/// `CUDA_ERROR_MAP_FAILED`
const MAP_FAILED: CUresult = 205;

/// What the 64 bytes of a handle say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    job: u64,
    token: Token,
    /// Whose it is: pid and start time.
    owner: (u32, u64),
}

impl Name {
    fn encode(self) -> CUipcMemHandle {
        let mut bytes = [0; 64];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.job.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.token);
        bytes[32..36].copy_from_slice(&self.owner.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.owner.1.to_le_bytes());
        let sum = hash(&bytes[..56]);
        bytes[56..64].copy_from_slice(&sum.to_le_bytes());
        CUipcMemHandle { reserved: bytes }
    }

    /// `None`: it was not made by any greenboost.
    fn decode(handle: &CUipcMemHandle) -> Option<Name> {
        let bytes = &handle.reserved;
        let word = |at: usize| bytes[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        if bytes[0..8] != MAGIC || word(56) != Some(hash(&bytes[..56])) {
            return None;
        }
        Some(Name {
            job: word(8)?,
            token: bytes[16..32].try_into().ok()?,
            owner: (
                u32::from_le_bytes(bytes[32..36].try_into().ok()?),
                word(40)?,
            ),
        })
    }
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A number for this job that no other job has: its directory's name is never used twice.
fn this_job() -> u64 {
    use std::os::unix::ffi::OsStrExt;
    process::directory().map_or(0, |d| hash(d.as_os_str().as_bytes()))
}

fn this_process() -> Option<(u32, u64)> {
    let pid = std::process::id();
    Some((pid, alive::start_time(pid)?))
}

/// Says once why sharing does not work here, or not with whom it was tried.
fn announce(once: &'static Once, device: Option<usize>, why: &str) {
    once.call_once(|| telemetry::say(Kind::Degraded, device, [0; 3], why));
}

/// Replaces `CUresult cuIpcGetMemHandle(CUipcMemHandle *pHandle, CUdeviceptr dptr)`: at any address of an allocation, the
/// handle of the whole, the same each time (measured).
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn get(out: *mut CUipcMemHandle, address: CUdeviceptr) -> CUresult {
    let place = process::job().and_then(|_| map::find(address));
    let Some(place) = place.filter(|_| !out.is_null() && has_context()) else {
        // SAFETY: the program's own call.
        return unsafe { real::cuIpcGetMemHandle(out, address) };
    };
    // What another process made is its own to hand on, and a pool's memory has no such handles: so the driver has it.
    if place.ties.opened.is_some() || pools::served_for(place.base).is_some() {
        return CUDA_ERROR_INVALID_VALUE;
    }
    let Some(owner) = this_process() else {
        return CUDA_ERROR_INVALID_VALUE;
    };
    let token = match place.ties.left_as.map_or_else(|| leave(place), Ok) {
        Ok(token) => token,
        Err(why) => {
            static SAID: Once = Once::new();
            let index = device::known(place.device).map(|d| d.index);
            let why = format!("memory cannot be shared with other processes: {why}");
            announce(&SAID, index, &why);
            return CUDA_ERROR_INVALID_VALUE;
        }
    };
    let job = this_job();
    // SAFETY: the program's room for the handle, not null.
    unsafe { *out = Name { job, token, owner }.encode() };
    CUDA_SUCCESS
}

/// Without a context the driver refuses everything here.
fn has_context() -> bool {
    driver::current_context().is_ok_and(|context| !context.is_null())
}

/// Whether a handle of this allocation can be had, as far as the device goes.
pub fn can_share(place: Place) -> bool {
    let here = place.ties.opened.is_none() && pools::served_for(place.base).is_none();
    here && device::known(place.device).is_some_and(|d| d.exportable)
}

/// Leaves an allocation's memory with the launcher.
fn leave(place: Place) -> Result<Token, &'static str> {
    const UNMAPPED: &str = "this driver or machine maps no memory that can be exported";
    let device = device::known(place.device)
        .filter(|d| d.exportable)
        .ok_or(UNMAPPED)?;
    // Before anything is exported: a chunk that moved meanwhile would be another one there than here.
    map::keep(place.base);
    if !staging::arm::at_home(device, place.base) {
        return Err("it is in use on the device, and in part not where it can be exported");
    }
    let (start, chunks) = map::with_range(place.base, |r| (r.base, r.chunks().to_vec()))
        .or_else(|| {
            let (start, chunk) = device.slabs.share(place.base)?;
            Some((start, vec![chunk]))
        })
        .ok_or(UNMAPPED)?;
    let facts = Facts {
        size: place.size,
        offset: place.base - start,
        device: driver::device_uuid(place.device).map_err(|_| "the driver names no device")?,
        pieces: 0,
    };
    let pieces: Vec<Piece> = chunks
        .iter()
        .map(|c| Piece {
            size: c.size,
            on_host: c.tier == Tier::Host,
        })
        .collect();
    let token = share::new_token().ok_or("the system gives no random numbers")?;
    // Nobody's capture is to notice.
    let _relaxed = driver::Relaxed::enter();
    share::leave(token, facts, &pieces, |i| {
        driver::export(chunks[i].handle).map_err(Failure::Driver)
    })
    .map_err(Failure::reason)?;
    let kept = map::tie(place.base, |ties| *ties.left_as.get_or_insert(token));
    if kept != Some(token) {
        // Another thread was faster, or has freed it.
        let _ = share::withdraw(token);
    }
    kept.ok_or("it was freed meanwhile")
}

macro_rules! opens {
    ($($ours:ident = $real:ident;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`: handles that were made here are opened here.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours(out: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint) -> CUresult {
            // SAFETY: the program's own call.
            let pass = || unsafe { real::$real(out, handle, flags) };
            let (Some(name), false) = (Name::decode(&handle), out.is_null()) else {
                return pass();
            };
            match memory::current(process::live()) {
                Ok(Some((job, device, context))) => match open(job, device, context, name, flags) {
                    Ok(address) => {
                        // SAFETY: the program's pointer for the result, not null.
                        unsafe { *out = address };
                        CUDA_SUCCESS
                    }
                    Err(code) => code,
                },
                // No context, or a wounded shim: the driver refuses it.
                Ok(None) => pass(),
                Err(code) => code,
            }
        }
    )*};
}

opens! {
    open_v1 = cuIpcOpenMemHandle;
    open_v2 = cuIpcOpenMemHandle_v2;
}

fn open(
    _job: &Job,
    device: &Device,
    context: Handle,
    name: Name,
    flags: c_uint,
) -> driver::Result<CUdeviceptr> {
    if flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if name.job != this_job() {
        static SAID: Once = Once::new();
        let why = "memory of another greenboost job cannot be opened: only processes under one run share memory";
        announce(&SAID, Some(device.index), why);
        return Err(CUDA_ERROR_INVALID_HANDLE);
    }
    // A process does not open its own (measured).
    if this_process() == Some(name.owner) {
        return Err(CUDA_ERROR_INVALID_CONTEXT);
    }
    if let Some(address) = map::open_again(name.token, context) {
        return Ok(address);
    }
    let _relaxed = driver::Relaxed::enter();
    bring(device, context, name.token).map_err(|failure| {
        static SAID: Once = Once::new();
        let why = format!(
            "memory of another process could not be opened: {}",
            failure.reason()
        );
        announce(&SAID, Some(device.index), &why);
        match failure {
            Failure::Unknown => CUDA_ERROR_INVALID_HANDLE,
            Failure::Launcher | Failure::Refused => MAP_FAILED,
            Failure::Driver(code) => code,
        }
    })
}

/// Takes what was left under a token and maps it for the current context's device.
fn bring(device: &Device, context: Handle, token: Token) -> Result<CUdeviceptr, Failure> {
    let facts = share::ask(token)?;
    let mut chunks = Vec::new();
    let taken = share::take(token, facts.pieces, |piece, descriptor| {
        if piece.size == 0 || !piece.size.is_multiple_of(GRAIN) {
            return Err(Failure::Refused);
        }
        let handle = driver::import(&descriptor).map_err(Failure::Driver)?;
        chunks.push(Chunk {
            size: piece.size,
            tier: if piece.on_host {
                Tier::Host
            } else {
                Tier::Vram
            },
            handle,
        });
        Ok(())
    });
    let span: u64 = chunks.iter().map(|c| c.size).sum();
    let fits = facts.size > 0
        && facts
            .offset
            .checked_add(facts.size)
            .is_some_and(|end| end <= span);
    if let Err(failure) = taken.and(if fits { Ok(()) } else { Err(Failure::Refused) }) {
        for chunk in chunks {
            // SAFETY: handles of our own, mapped nowhere.
            let _ = unsafe { driver::release(chunk.handle) };
        }
        return Err(failure);
    }
    let home = home(facts.device).unwrap_or(device.ordinal);
    let mut users = device::known(home).map_or_else(Vec::new, Device::users);
    if !users.contains(&device.ordinal) {
        users.push(device.ordinal);
    }
    if home != device.ordinal {
        drain::crosses();
    }
    let range = Range::of_others(chunks, &users).map_err(Failure::Driver)?;
    let allocation = Allocation {
        base: range.base + facts.offset,
        size: facts.size,
        device: device.ordinal,
        context,
        backing: Backing::Range(range),
        ties: Ties {
            fixed: true,
            opened: Some(Opened {
                token,
                count: 1,
                home,
            }),
            ..Ties::default()
        },
    };
    let (address, left_over) = map::open(allocation);
    if let Some(Backing::Range(range)) = left_over.map(|a| a.backing) {
        // Another thread was faster.
        // SAFETY: the program has never seen this range.
        unsafe { range.close() };
    }
    Ok(address)
}

/// The device with this UUID, if this process sees it.
fn home(uuid: [u8; 16]) -> Option<CUdevice> {
    let count = driver::device_count().ok()? as CUdevice;
    (0..count).find(|device| driver::device_uuid(*device) == Ok(uuid))
}

/// Replaces `CUresult cuIpcCloseMemHandle(CUdeviceptr dptr)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn close(address: CUdeviceptr) -> CUresult {
    let ours = process::job().filter(|_| has_context());
    let closed = ours.and_then(|job| {
        tier_free::close(job, address)
            .or_else(|| map::find(address).map(|_| CUDA_ERROR_INVALID_VALUE))
    });
    closed.unwrap_or_else(|| {
        let _pass = gate::pass();
        // SAFETY: the program's own call.
        unsafe { real::cuIpcCloseMemHandle(address) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_other_handles() {
        let name = Name {
            job: 7,
            token: *b"0123456789abcdef",
            owner: (42, 1 << 40),
        };
        let handle = name.encode();
        assert_eq!(Name::decode(&handle), Some(name));
        for at in 0..64 {
            let mut other = handle;
            other.reserved[at] ^= 1;
            assert_eq!(Name::decode(&other), None, "byte {at}");
        }
        assert_eq!(Name::decode(&CUipcMemHandle { reserved: [7; 64] }), None);
    }
}
