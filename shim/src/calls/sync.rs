//! Where the program waits. There the driver takes from its pools what their thresholds do not keep, so the ledger is
//! brought up to date: other processes of the job may be waiting for the room.

use greenboost_abi::*;

use crate::hooks::real;
use crate::process;
use crate::tier::stream::Lane;
use crate::tier::{device, pools, steward};

/// What the program has waited for.
enum For {
    Stream(CUstream),
    Everything,
    Something,
}

fn after(result: CUresult, waited: For) -> CUresult {
    if result == CUDA_SUCCESS
        && pools::any()
        && let Some(job) = process::job()
    {
        match waited {
            For::Stream(stream) => {
                if let Some(lane) = Lane::of_made(stream) {
                    pools::waited_for(Some(lane));
                }
            }
            For::Everything => pools::waited_for(None),
            For::Something => {}
        }
        device::all().for_each(|device| pools::sync(job, device));
    }
    if result == CUDA_SUCCESS {
        steward::waited();
    }
    result
}

macro_rules! waits {
    ($($ours:ident = $real:ident($($arg:ident: $ty:ty)?) for $what:expr;)*) => {$(
        #[doc = concat!("Replaces `", stringify!($real), "`.")]
        ///
        /// # Safety
        /// As for the function it replaces.
        pub unsafe fn $ours($($arg: $ty)?) -> CUresult {
            // SAFETY: the program's own call.
            after(unsafe { real::$real($($arg)?) }, ($what)($($arg)?))
        }
    )*};
}

waits! {
    stream = cuStreamSynchronize(stream: CUstream) for For::Stream;
    stream_ptsz = cuStreamSynchronize_ptsz(stream: CUstream) for For::Stream;
    event = cuEventSynchronize(event: CUevent) for |_| For::Something;
    context = cuCtxSynchronize() for || For::Everything;
    context_v2 = cuCtxSynchronize_v2(context: CUcontext) for |_| For::Something;
}
