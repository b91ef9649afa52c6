//! Pools that leave the process: a descriptor names the pool, a block of data each allocation in it.
use core::ffi::{c_int, c_ulonglong};
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use greenboost_abi::{
    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_UNKNOWN,
    CUmemPoolPtrExportData,
};

use crate::abi::{In, Out, Res};
use crate::phys::{Phys, Place};
use crate::world::{World, world};

/// What the file behind an exported pool says first.
const MAGIC: u64 = u64::from_le_bytes(*b"fakepool");

/// A file of words that stands for the pool.
fn token(words: [u64; 2]) -> Res<c_int> {
    // SAFETY: the name is terminated; the file is new, and written from an array that lives.
    unsafe {
        let fd = libc::memfd_create(c"fakecuda-pool".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(CUDA_ERROR_UNKNOWN);
        }
        let file = OwnedFd::from_raw_fd(fd);
        let bytes = size_of_val(&words);
        if libc::pwrite(fd, words.as_ptr().cast(), bytes, 0) != bytes as isize {
            return Err(CUDA_ERROR_UNKNOWN);
        }
        Ok(file.into_raw_fd())
    }
}

fn read_token(fd: usize) -> Res<[u64; 2]> {
    let fd = c_int::try_from(fd).map_err(|_| CUDA_ERROR_INVALID_VALUE)?;
    let mut words = [0u64; 2];
    let bytes = size_of_val(&words);
    // SAFETY: reads at most as much as there is room for; a descriptor that is none is refused.
    let got = unsafe { libc::pread(fd, words.as_mut_ptr().cast(), bytes, 0) };
    if got != bytes as isize || words[0] != MAGIC {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    Ok(words)
}

/// Where an allocation is: whose it is, the descriptor of its block there, the block's bytes, offset and size in it.
struct Where {
    pid: u64,
    fd: u64,
    block: u64,
    offset: u64,
    size: u64,
}

impl Where {
    fn encode(&self) -> CUmemPoolPtrExportData {
        let mut data = [0; 64];
        let words = [MAGIC, self.pid, self.fd, self.block, self.offset, self.size];
        for (slot, word) in data.chunks_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        data
    }

    fn decode(data: &CUmemPoolPtrExportData) -> Res<Where> {
        let word = |i: usize| {
            let mut word = [0; 8];
            (&data[i * 8..])
                .read_exact(&mut word)
                .map(|()| u64::from_le_bytes(word))
        };
        let all = [word(0), word(1), word(2), word(3), word(4), word(5)];
        match all {
            [Ok(MAGIC), Ok(pid), Ok(fd), Ok(block), Ok(offset), Ok(size)] => Ok(Where {
                pid,
                fd,
                block,
                offset,
                size,
            }),
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        }
    }
}

fn export_pointer(w: &World, va: u64) -> Res<Where> {
    let (start, alloc) = w.alloc_of(va).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let pool = w.pools.get(&alloc.pool).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if !pool.exportable || pool.imported {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let m = w
        .space
        .mappings
        .get(&alloc.block)
        .ok_or(CUDA_ERROR_UNKNOWN)?;
    let fd = m.phys.fd.as_ref().ok_or(CUDA_ERROR_UNKNOWN)?;
    Ok(Where {
        pid: std::process::id().into(),
        fd: fd.as_raw_fd() as u64,
        block: m.size,
        offset: start - alloc.block,
        size: alloc.size,
    })
}

fn import_pointer(w: &mut World, pool: usize, at: &Where) -> Res<u64> {
    let place = match w.pools.get(&pool) {
        Some(p) if p.imported => p.place,
        _ => return Err(CUDA_ERROR_INVALID_VALUE),
    };
    let path = format!("/proc/{}/fd/{}", at.pid, at.fd);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|_| CUDA_ERROR_INVALID_VALUE)?;
    let phys = Phys::imported(place, at.block, file.into())?;
    let ctx = w.here()?;
    w.adopt_block(ctx, pool, phys, at.offset, at.size)
}

api! {
    Init cuMemPoolExportToShareableHandle { 11020 cuMemPoolExportToShareableHandle Legacy } (handle: Out<c_int>, pool: usize, kind: c_int, flags: c_ulonglong) |_f| {
        handle.check()?;
        let w = world();
        let entry = w.pools.get(&pool).filter(|p| p.exportable && !p.imported);
        let Place::Device(device) = entry.ok_or(CUDA_ERROR_INVALID_VALUE)?.place else {
            return Err(CUDA_ERROR_INVALID_VALUE);
        };
        if kind != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        handle.set(token([MAGIC, device as u64])?)
    }
    Init cuMemPoolImportFromShareableHandle { 11020 cuMemPoolImportFromShareableHandle Legacy } (pool: Out<usize>, handle: usize, kind: c_int, flags: c_ulonglong) |_f| {
        pool.check()?;
        if kind != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let [_, device] = read_token(handle)?;
        let device = crate::device::check(device as c_int)?;
        let mut w = world();
        let new = w.add_pool(Place::Device(device), false);
        if let Some(entry) = w.pools.get_mut(&new) {
            (entry.exportable, entry.imported) = (true, true);
        }
        pool.set(new)
    }
    Init cuMemPoolExportPointer { 11020 cuMemPoolExportPointer Legacy } (data: Out<CUmemPoolPtrExportData>, va: u64) |_f| {
        data.check()?;
        data.set(export_pointer(&world(), va)?.encode())
    }
    Context cuMemPoolImportPointer { 11020 cuMemPoolImportPointer Legacy } (va: Out<u64>, pool: usize, data: In<CUmemPoolPtrExportData>) |_f| {
        va.check()?;
        let at = Where::decode(&data.get()?)?;
        va.set(import_pointer(&mut world(), pool, &at)?)
    }
}
