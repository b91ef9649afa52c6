//! Many reads and writes of the file at once.
//!
//! A [`Disk`] does them: [`ring`] by io_uring, or [`pool`] by threads where the kernel or a sandbox refuses that. The
//! [`Queue`] before it sees to it that each is done whole: what came short is continued, what was interrupted is begun
//! again, and only real errors are told.

mod pool;
mod ring;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

pub use self::pool::Pool;
pub use self::ring::Ring;

/// What O_DIRECT wants addresses, places and lengths to be multiples of, bytes: more than any device at hand asks for.
pub const UNIT: usize = 64 << 10;

/// A kernel that is out of memory for requests is asked again so soon.
const AGAIN: Duration = Duration::from_millis(2);
/// And so often, before that is an error: half a minute.
const TRIES: u32 = 15_000;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file.
    Read,
    /// To the file.
    Write,
}

/// A request: between a place in the file and memory, which nobody else touches until it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which way.
    pub direction: Direction,
    /// Where in the file, bytes.
    pub at: u64,
    /// Where in memory.
    pub address: usize,
    /// Bytes.
    pub len: usize,
}

/// What does requests; those who ask number them.
pub trait Disk: Send {
    /// Begins a request.
    ///
    /// # Errors
    /// `WouldBlock` when not now. Whatever the error: it was not begun.
    fn start(&mut self, id: u32, piece: Piece) -> io::Result<()>;

    /// Adds those that have ended to `ended`, with the bytes that came through or a negative `errno`. Waits so long for
    /// the first one.
    ///
    /// # Errors
    /// When nothing more can be learned from it.
    fn collect(&mut self, patience: Duration, ended: &mut Vec<(u32, i32)>) -> io::Result<()>;
}

/// A request on its way.
#[derive(Clone, Copy)]
struct Running {
    token: u64,
    /// What is left of it.
    piece: Piece,
    tries: u32,
}

/// Requests on their way.
pub struct Queue {
    disk: Box<dyn Disk>,
    running: Vec<Option<Running>>,
    vacant: Vec<u32>,
    /// To be begun (again) at that time.
    again: VecDeque<(Instant, u32)>,
    ended: Vec<(u32, i32)>,
}

impl Queue {
    /// At most `depth` requests at once.
    pub fn new(disk: Box<dyn Disk>, depth: usize) -> Queue {
        Queue {
            disk,
            running: vec![None; depth],
            vacant: (0..depth as u32).collect(),
            again: VecDeque::new(),
            ended: Vec::new(),
        }
    }

    /// What did the requests, when none is on its way.
    pub fn into_disk(self) -> Box<dyn Disk> {
        self.disk
    }

    /// Whether it takes one more.
    pub fn has_room(&self) -> bool {
        !self.vacant.is_empty()
    }

    /// How many are on their way.
    pub fn in_flight(&self) -> usize {
        self.running.len() - self.vacant.len()
    }

    /// Begins a request, when there is room.
    ///
    /// # Safety
    /// Nobody else writes to its memory, nor reads what it reads, and the memory stays, until it was told as ended.
    pub unsafe fn start(&mut self, token: u64, piece: Piece) {
        let Some(id) = self.vacant.pop() else { return };
        self.running[id as usize] = Some(Running {
            token,
            piece,
            tries: 0,
        });
        self.begin(id);
    }

    /// Tells what has ended, by its token, with an `errno` where it failed. Waits so long for the first one.
    ///
    /// # Errors
    /// When nothing more can be learned of what is on its way.
    pub fn collect(
        &mut self,
        patience: Duration,
        mut tell: impl FnMut(u64, Result<(), i32>),
    ) -> io::Result<()> {
        let now = Instant::now();
        let due = self.again.iter().take_while(|(at, _)| *at <= now).count();
        let due: Vec<u32> = self.again.drain(..due).map(|(_, id)| id).collect();
        for id in due {
            self.begin(id);
        }
        let next = self
            .again
            .front()
            .map(|(at, _)| at.saturating_duration_since(now));
        let patience = match next {
            _ if !self.ended.is_empty() => Duration::ZERO,
            Some(next) => patience.min(next),
            None => patience,
        };
        if self.again.len() == self.in_flight() {
            // The disk has nothing that could end.
            std::thread::sleep(patience);
            return Ok(());
        }
        let mut ended = std::mem::take(&mut self.ended);
        let collected = self.disk.collect(patience, &mut ended);
        for (id, result) in ended.drain(..) {
            let token = self.running.get(id as usize).copied().flatten();
            let Some(Running { token, .. }) = token else {
                continue;
            };
            if let Some(result) = self.judge(id, result) {
                self.running[id as usize] = None;
                self.vacant.push(id);
                tell(token, result);
            }
        }
        self.ended = ended;
        collected
    }

    fn begin(&mut self, id: u32) {
        let Some(running) = self.running[id as usize] else {
            return;
        };
        if let Err(e) = self.disk.start(id, running.piece) {
            let errno = e.raw_os_error().unwrap_or(match e.kind() {
                io::ErrorKind::WouldBlock => libc::EAGAIN,
                _ => libc::EIO,
            });
            // Told as if it had ended, which is looked at in one place.
            self.ended.push((id, -errno));
        }
    }

    /// What came of it; `None`: it goes on.
    fn judge(&mut self, id: u32, result: i32) -> Option<Result<(), i32>> {
        let running = self.running[id as usize].as_mut()?;
        match result {
            n if n == -libc::EINTR || n == -libc::EAGAIN => {
                running.tries += 1;
                if running.tries > TRIES {
                    return Some(Err(-n));
                }
                let wait = if n == -libc::EAGAIN {
                    AGAIN
                } else {
                    Duration::ZERO
                };
                self.again.push_back((Instant::now() + wait, id));
                None
            }
            errno @ ..0 => Some(Err(-errno)),
            n => {
                let n = n as usize;
                if n >= running.piece.len {
                    return Some(Ok(()));
                }
                // O_DIRECT does not go on from just anywhere.
                let done = n / UNIT * UNIT;
                running.piece.at += done as u64;
                running.piece.address += done;
                running.piece.len -= done;
                if done > 0 {
                    running.tries = 0;
                } else {
                    running.tries += 1;
                    // The file ends there, though it was set aside: somebody has cut it off.
                    if n == 0 || running.tries > TRIES {
                        return Some(Err(libc::EIO));
                    }
                }
                self.begin(id);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as it is told to.
    struct Scripted {
        answers: VecDeque<io::Result<i32>>,
        ended: Vec<(u32, i32)>,
        tell: std::sync::mpsc::Sender<Piece>,
    }

    impl Disk for Scripted {
        fn start(&mut self, id: u32, piece: Piece) -> io::Result<()> {
            let _ = self.tell.send(piece);
            let answer = self.answers.pop_front().unwrap()?;
            self.ended.push((id, answer));
            Ok(())
        }

        fn collect(&mut self, _: Duration, ended: &mut Vec<(u32, i32)>) -> io::Result<()> {
            ended.append(&mut self.ended);
            Ok(())
        }
    }

    /// What is begun, and what comes of a request of a MiB at 0, in memory at 0.
    fn of(answers: Vec<io::Result<i32>>) -> (Vec<Piece>, Result<(), i32>) {
        let (tell, told) = std::sync::mpsc::channel();
        let disk = Scripted {
            answers: answers.into(),
            ended: Vec::new(),
            tell,
        };
        let mut queue = Queue::new(Box::new(disk), 1);
        // SAFETY: this disk touches no memory.
        unsafe { queue.start(7, WHOLE) };
        assert!(!queue.has_room());
        let mut came = None;
        while came.is_none() {
            queue
                .collect(Duration::from_millis(1), |token, result| {
                    assert_eq!(token, 7);
                    came = Some(result);
                })
                .unwrap();
        }
        assert_eq!(queue.in_flight(), 0);
        (told.try_iter().collect(), came.unwrap())
    }

    const WHOLE: Piece = Piece {
        direction: Direction::Read,
        at: 0,
        address: 0,
        len: 1 << 20,
    };

    #[test]
    fn what_came_short_goes_on_at_a_border() {
        let half = (512 << 10) + 5;
        let (begun, result) = of(vec![Ok(half), Ok(100), Ok(512 << 10)]);
        let rest = Piece {
            at: 512 << 10,
            address: 512 << 10,
            len: 512 << 10,
            ..WHOLE
        };
        assert_eq!((begun, result), (vec![WHOLE, rest, rest], Ok(())));
        let (begun, result) = of(vec![Ok(half), Ok(0)]);
        assert_eq!(
            (begun, result),
            (vec![WHOLE, rest], Err(libc::EIO)),
            "cut off"
        );
    }

    #[test]
    fn what_was_interrupted_is_begun_again() {
        let again = |errno| io::Error::from_raw_os_error(errno);
        let answers = vec![
            Ok(-libc::EINTR),
            Err(again(libc::EAGAIN)),
            Ok(-libc::EAGAIN),
            Err(io::ErrorKind::WouldBlock.into()),
            Ok(1 << 20),
        ];
        assert_eq!(of(answers), (vec![WHOLE; 5], Ok(())));
    }

    #[test]
    fn errors_are_told() {
        for errno in [libc::EIO, libc::ENOSPC, libc::EFBIG] {
            assert_eq!(of(vec![Ok(-errno)]), (vec![WHOLE], Err(errno)));
            let refused = Err(io::Error::from_raw_os_error(errno));
            assert_eq!(of(vec![refused]), (vec![WHOLE], Err(errno)));
        }
    }
}
