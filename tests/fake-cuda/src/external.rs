//! External memory: what another API exported, here any memfd of the simulation's or of a test's. It is mapped where the
//! program asks for it, and charged to nobody: whoever made it has it already.
use core::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use greenboost_abi::{
    CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD, CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_INVALID_VALUE,
    CUDA_ERROR_NOT_SUPPORTED, CUDA_EXTERNAL_MEMORY_BUFFER_DESC, CUDA_EXTERNAL_MEMORY_HANDLE_DESC,
};

use crate::abi::{In, Out, Res};
use crate::misuse::misuse;
use crate::phys::{GRANULE, Phys, Place};
use crate::va::{Owner, READ_WRITE};
use crate::world::{Kind, World, world};

pub(crate) struct External {
    phys: Arc<Phys>,
    device: usize,
}

fn import(desc: CUDA_EXTERNAL_MEMORY_HANDLE_DESC) -> Res<usize> {
    if desc.type_ != CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD {
        // Other types belong to other systems.
        return Err(match desc.type_ {
            2..=8 => CUDA_ERROR_NOT_SUPPORTED,
            _ => CUDA_ERROR_INVALID_VALUE,
        });
    }
    let mut w = world();
    let device = w.device_here()?;
    // SAFETY: plain call; a descriptor that is none gives -1.
    let length = unsafe { libc::lseek(desc.fd as c_int, 0, libc::SEEK_END) };
    if desc.size == 0 || !u64::try_from(length).is_ok_and(|n| desc.size <= n) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: open, as was just seen; after a success the descriptor belongs to CUDA (documented).
    let fd = unsafe { OwnedFd::from_raw_fd(desc.fd) };
    let phys = Phys::imported(Place::Device(device), desc.size, fd)?;
    let handle = w.fresh(Kind::Other) as usize;
    w.externals.insert(handle, External { phys, device });
    Ok(handle)
}

fn map(handle: usize, desc: CUDA_EXTERNAL_MEMORY_BUFFER_DESC) -> Res<u64> {
    let mut w = world();
    let ctx = w.here()?;
    let external = w.externals.get(&handle).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
    let (phys, device) = (external.phys.clone(), external.device);
    let whole = desc.offset == 0 && desc.size == phys.size && phys.size.is_multiple_of(GRANULE);
    if desc.size == 0 || desc.flags != 0 || desc.offset.saturating_add(desc.size) > phys.size {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if !whole {
        // Parts are beyond this simulation.
        return Err(CUDA_ERROR_NOT_SUPPORTED);
    }
    let start = w.space.reserve(phys.size, GRANULE, 0, Owner::Driver)?;
    w.space.map(start, phys, 0);
    if let Some(m) = w.space.mappings.get_mut(&start) {
        m.rights[device] = READ_WRITE;
    }
    w.adopt(ctx, device, start, desc.size);
    Ok(start)
}

fn destroy(handle: usize) -> Res {
    if world().externals.remove(&handle).is_none() {
        misuse!("destroy of external memory {handle:#x}, which does not exist");
        return Err(CUDA_ERROR_INVALID_HANDLE);
    }
    Ok(())
}

impl World {
    /// Whether anything external is still imported.
    pub(crate) fn imported(&self) -> usize {
        self.externals.len()
    }
}

api! {
    Context cuImportExternalMemory { 10000 cuImportExternalMemory Legacy } (memory: Out<usize>, desc: In<CUDA_EXTERNAL_MEMORY_HANDLE_DESC>) |_f| {
        memory.check()?;
        memory.set(import(desc.get()?)?)
    }
    Context cuExternalMemoryGetMappedBuffer { 10000 cuExternalMemoryGetMappedBuffer Legacy } (va: Out<u64>, memory: usize, desc: In<CUDA_EXTERNAL_MEMORY_BUFFER_DESC>) |_f| {
        va.check()?;
        va.set(map(memory, desc.get()?)?)
    }
    Context cuDestroyExternalMemory { 10000 cuDestroyExternalMemory Legacy } (memory: usize) |_f| { destroy(memory) }
}
