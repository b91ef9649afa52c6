//! Requests by threads that call pread and pwrite.
//!
//! Through the page cache, where there is no O_DIRECT: what is written is synchronised at once and dropped, so that no RAM
//! fills up and errors are known. One write at a time then: an error of writing back is told once, to whoever asks next.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Direction, Disk, Piece};
use crate::tier::spill::file::Handle;

/// What the threads share.
struct Shared {
    file: Handle,
    is_direct: bool,
    jobs: Mutex<Receiver<(u32, Piece)>>,
    /// Held while something is written through the page cache.
    writing: Mutex<()>,
}

/// Threads, as many as requests at once. They end when this is gone and their requests are.
pub struct Pool {
    jobs: Sender<(u32, Piece)>,
    ended: Receiver<(u32, i32)>,
}

impl Pool {
    /// Starts them. They take no signals if the caller does not, and have its descriptors.
    ///
    /// # Errors
    /// When not even one can be started.
    pub fn new(file: Handle, is_direct: bool, threads: usize) -> io::Result<Pool> {
        let (jobs, queue) = channel();
        let (sender, ended) = channel();
        let shared = Arc::new(Shared {
            file,
            is_direct,
            jobs: Mutex::new(queue),
            writing: Mutex::new(()),
        });
        for started in 0..threads {
            let (shared, sender) = (shared.clone(), sender.clone());
            let thread = std::thread::Builder::new()
                .name("greenboost-disk".into())
                .stack_size(128 << 10);
            let spawned = thread.spawn(move || {
                loop {
                    let next = shared.jobs.lock().map(|jobs| jobs.recv());
                    let Ok(Ok((id, piece))) = next else { return };
                    let result = shared.run(piece);
                    if sender.send((id, result)).is_err() {
                        return;
                    }
                }
            });
            match spawned {
                Err(e) if started == 0 => return Err(e),
                Err(_) => break,
                Ok(_) => {}
            }
        }
        Ok(Pool { jobs, ended })
    }
}

impl Shared {
    /// As the kernel would answer: bytes, or a negative `errno`.
    fn run(&self, piece: Piece) -> i32 {
        let Some(fd) = self.file.fd() else {
            return -libc::EBADF;
        };
        let address = piece.address as *mut libc::c_void;
        let (len, at) = (piece.len, piece.at as libc::off_t);
        let answer = |n: isize| match n {
            0.. => n as i32,
            _ => -io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        };
        if self.is_direct {
            // SAFETY: the memory is left alone until the request has ended, by the promise of whoever began it.
            return answer(unsafe {
                match piece.direction {
                    Direction::Read => libc::pread(fd, address, len, at),
                    Direction::Write => libc::pwrite(fd, address, len, at),
                }
            });
        }
        let _one = (piece.direction == Direction::Write)
            .then(|| self.writing.lock().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: as above.
        unsafe {
            let n = match piece.direction {
                Direction::Read => answer(libc::pread(fd, address, len, at)),
                Direction::Write => match answer(libc::pwrite(fd, address, len, at)) {
                    0.. if libc::fdatasync(fd) != 0 => answer(-1),
                    n => n,
                },
            };
            libc::posix_fadvise(fd, at, len as libc::off_t, libc::POSIX_FADV_DONTNEED);
            n
        }
    }
}

impl Disk for Pool {
    fn start(&mut self, id: u32, piece: Piece) -> io::Result<()> {
        let sent = self.jobs.send((id, piece));
        sent.map_err(|_| io::Error::from_raw_os_error(libc::EIO))
    }

    fn collect(&mut self, patience: Duration, ended: &mut Vec<(u32, i32)>) -> io::Result<()> {
        if let Ok(first) = self.ended.recv_timeout(patience) {
            ended.push(first);
        }
        ended.extend(self.ended.try_iter());
        Ok(())
    }
}
