//! External memory: made by another interface (Vulkan, another driver), imported. It is there whether or not it is
//! imported, so it is counted by name and charged to no budget; its mappings are the driver's.

use greenboost_abi::*;
use greenboost_wire::ledger::Part;

use super::memory::counting;
use crate::hooks::real;
use crate::tier::counted::{self, Counted};

/// Replaces `CUresult cuImportExternalMemory(CUexternalMemory *extMem_out, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC
/// *memHandleDesc)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn import(
    out: *mut CUexternalMemory,
    desc: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC,
) -> CUresult {
    // SAFETY: the program's own call; after a success both pointers were good.
    unsafe {
        let result = real::cuImportExternalMemory(out, desc);
        if result == CUDA_SUCCESS
            && let Some((job, device, context)) = counting()
        {
            let counted = Counted {
                part: Part::External,
                index: device.index,
                bytes: (*desc).size,
                context,
            };
            counted::add(job, *out as u64, counted);
        }
        result
    }
}

/// Replaces `CUresult cuDestroyExternalMemory(CUexternalMemory extMem)`.
///
/// # Safety
/// As for the function it replaces.
pub unsafe fn destroy(memory: CUexternalMemory) -> CUresult {
    // SAFETY: the program's own call.
    counted::end(Part::External, memory as u64, || unsafe {
        real::cuDestroyExternalMemory(memory)
    })
}
