//! Moving chunks between tiers: copied to a new backing, which takes the place of the old one under the same address.
//!
//! It happens behind the shut gate, while the device is drained and nothing captures: no work that could touch the chunk
//! is in flight, and none can begin. Until the copy is complete nothing has changed; from then on either the new backing
//! or the old one is mapped, or the program is stopped.

use std::time::{Duration, Instant};

use greenboost_wire::ledger::Tier;

use super::device::Device;
use super::drain;
use super::gate::{self, Closed, Shut};
use super::map::{self, Movable};
use super::policy::Move;
use super::range::{self, Shortage};
use super::spare::{self, Chunk};
use super::staging;
use crate::driver::{self, Location};
use crate::freeze::Motion;
use crate::process::{self, Job};

/// Why nothing can move now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Nothing will ever move in this process.
    Frozen,
    /// A capture is open.
    Capturing,
    /// Work was in flight to the end of the time given, or a call could not wait.
    Busy,
}

/// The proof that a device's chunks may move, while it lives.
pub struct Stillness {
    // In this order: calls pass again before functions that freeze do.
    _shut: Shut,
    _motion: Motion,
    _paused: staging::AllPaused,
}

/// Proves that no work of the process is in flight on the device, and keeps it so. The calling thread is outside the gate.
///
/// # Errors
/// What is in the way; nothing has changed then.
pub fn still(device: &Device, patience: Duration) -> Result<Stillness, Obstacle> {
    if crate::freeze::frozen() {
        return Err(Obstacle::Frozen);
    }
    if drain::capturing() {
        return Err(Obstacle::Capturing);
    }
    let deadline = Instant::now() + patience;
    let paused = staging::try_pause(patience).ok_or(Obstacle::Busy)?;
    let closed = gate::close(patience).ok_or(Obstacle::Busy)?;
    let left = deadline.saturating_duration_since(Instant::now());
    if !drain::within(device.ordinal, left) {
        return Err(match drain::capturing() {
            true => Obstacle::Capturing,
            false => Obstacle::Busy,
        });
    }
    // Whoever has called a function that freezes since then, or has begun a capture, is seen here; whoever does so from
    // here on waits: a capture begins with a call that passes the gate.
    let motion = Motion::begin().ok_or(Obstacle::Frozen)?;
    let shut = Closed::shut(closed).ok_or(Obstacle::Busy)?;
    if drain::capturing() {
        return Err(Obstacle::Capturing);
    }
    staging::still(device.ordinal);
    Ok(Stillness {
        _shut: shut,
        _motion: motion,
        _paused: paused,
    })
}

/// What came of a list of moves.
#[derive(Debug, Default)]
pub struct Moved {
    /// Those that were made, in order.
    pub done: Vec<Move>,
    /// Those that were not: the chunk is gone or may not move, there is no room, or the driver refused.
    pub refused: Vec<Move>,
    /// Bytes of each that was made.
    pub bytes: Vec<u64>,
}

/// Makes moves in their order until `until`, at least one. What is not tried is in neither list.
pub fn make(
    job: &Job,
    device: &Device,
    moves: &[Move],
    until: Instant,
    _still: &Stillness,
) -> Moved {
    let mut moved = Moved::default();
    let largest = super::chunk::CLASSES[0];
    let Ok(window) = driver::reserve(largest as usize) else {
        moved.refused.extend(moves);
        return moved;
    };
    let mut yard = Yard {
        job,
        device,
        chunks: Vec::new(),
    };
    for wish in moves {
        if !moved.done.is_empty() && Instant::now() >= until {
            break;
        }
        match one(&mut yard, *wish, window) {
            Ok(bytes) => {
                moved.done.push(*wish);
                moved.bytes.push(bytes);
            }
            Err(Trouble::Undone) => moved.refused.push(*wish),
            Err(Trouble::Stuck) => {
                process::wound("the driver did not end a copy, or did not unmap it");
                return moved;
            }
        }
    }
    // SAFETY: our own range, in which nothing is mapped any more. A refusal costs addresses.
    let _ = unsafe { driver::unreserve(window, largest as usize) };
    moved
}

/// Why a move was not made.
enum Trouble {
    /// The chunk is as it was, and the new backing mapped nowhere.
    Undone,
    /// The chunk is as it was, but the window has to stay as it is, with the new backing in it.
    Stuck,
}

impl From<driver::Error> for Trouble {
    fn from(_: driver::Error) -> Trouble {
        Trouble::Undone
    }
}

/// Backing that earlier moves have left and later ones may take: it is reserved, and mapped nowhere.
struct Yard<'a> {
    job: &'a Job,
    device: &'a Device,
    chunks: Vec<Chunk>,
}

impl Yard<'_> {
    /// Backing of a tier; the reservation comes first and is undone when there is no memory.
    fn take(&mut self, tier: Tier, size: u64) -> Result<Chunk, Shortage> {
        let fits = |c: &Chunk| c.tier == tier && c.size == size;
        if let Some(at) = self.chunks.iter().rposition(fits) {
            return Ok(self.chunks.swap_remove(at));
        }
        if let Some(chunk) = self.device.spare.take(tier, size) {
            return Ok(chunk);
        }
        let reserve = || self.job.place.reserve(tier, self.device.index, size);
        if reserve().is_err() {
            // Backing of other sizes is in the way.
            let (away, kept) = self.chunks.drain(..).partition(|c| c.tier == tier);
            self.chunks = kept;
            let away: Vec<Chunk> = away;
            for chunk in away {
                spare::release(self.job, self.device, chunk);
            }
            spare::trim(self.job, self.device, tier);
            reserve().map_err(|_| Shortage::Budget)?;
        }
        let made = match tier {
            Tier::Vram => self
                .device
                .vram
                .ok_or(Shortage::Driver)
                .and_then(|l| make_at(self.device, size, l)),
            Tier::Host => range::host_piece(self.job, self.device, size),
        };
        match made {
            Ok(handle) => Ok(Chunk { size, tier, handle }),
            Err(why) => {
                self.job.place.release(tier, self.device.index, size);
                Err(why)
            }
        }
    }
}

impl Drop for Yard<'_> {
    fn drop(&mut self) {
        for chunk in self.chunks.drain(..) {
            spare::give(self.job, self.device, chunk);
        }
    }
}

fn make_at(device: &Device, size: u64, location: Location) -> Result<u64, Shortage> {
    device
        .make(size as usize, location)
        .map_err(|_| Shortage::Driver)
}

/// Makes one move; its bytes.
fn one(yard: &mut Yard, wish: Move, window: u64) -> Result<u64, Trouble> {
    let _still = map::hold_still();
    let from = map::movable(wish.base, wish.chunk)
        .filter(|m| m.chunk.tier != wish.to)
        .ok_or(Trouble::Undone)?;
    let new = yard
        .take(wish.to, from.chunk.size)
        .map_err(|_| Trouble::Undone)?;
    // SAFETY: `Stillness` and `hold_still` are held; the window is our own and empty.
    let exchanged = unsafe { exchange(yard.device, &from, new, window) };
    match exchanged {
        Ok(()) => {
            staging::homed(yard.device.ordinal, wish.base, wish.chunk, new);
            yard.chunks
                .extend(map::exchange(wish.base, wish.chunk, new));
        }
        Err(Trouble::Undone) => yard.chunks.push(new),
        Err(Trouble::Stuck) => {}
    }
    exchanged.map(|()| new.size)
}

/// Copies a chunk to a new backing and maps that in its place.
///
/// # Safety
/// No work that could touch the chunk is in flight and none can begin; the allocation stays. `window` is empty, and as
/// large as the chunk.
unsafe fn exchange(
    device: &Device,
    from: &Movable,
    new: Chunk,
    window: u64,
) -> Result<(), Trouble> {
    let size = new.size as usize;
    // SAFETY: the caller's promise: nobody uses the window, and nobody the chunk. What is unmapped is not in use: a copy
    // that may go on keeps its window.
    unsafe {
        driver::map(window, size, new.handle)?;
        let copied = match driver::set_access(window, size, [device.ordinal]) {
            Ok(()) => {
                drain::in_known_context(from.context, || driver::copy(window, from.address, size))
                    .unwrap_or_else(|code| Err((code, true)))
            }
            Err(code) => Err((code, true)),
        };
        if matches!(copied, Err((_, false))) || driver::unmap(window, size).is_err() {
            return Err(Trouble::Stuck);
        }
        copied.map_err(|_| Trouble::Undone)?;
        driver::unmap(from.address, size)?;
        let Err(code) = settle(device, from.address, new) else {
            return Ok(());
        };
        // The old backing still has all bytes.
        if let Err(again) = settle(device, from.address, from.chunk) {
            process::stop(&format!(
                "memory could not be mapped back where the program has it (errors {code} and {again})"
            ));
        }
        Err(Trouble::Undone)
    }
}

/// Maps a chunk where nothing is mapped, for all who use the device's ranges; or leaves nothing mapped.
///
/// # Safety
/// As for [`exchange`].
unsafe fn settle(device: &Device, address: u64, chunk: Chunk) -> driver::Result<()> {
    let size = chunk.size as usize;
    // SAFETY: the caller's promise.
    unsafe {
        driver::map(address, size, chunk.handle)?;
        driver::set_access(address, size, device.users()).inspect_err(|_| {
            let _ = driver::unmap(address, size);
        })
    }
}
