//! A library whose constructor uses CUDA: it runs before the constructors of preloaded libraries.

use std::sync::OnceLock;
use victim::gpu::Gpu;

static GPU: OnceLock<(Gpu, u64)> = OnceLock::new();

extern "C" fn construct() {
    let gpu = Gpu::open();
    let p = gpu.alloc(20 << 20);
    gpu.write(p, &victim::pattern(5, 20 << 20));
    let _ = GPU.set((gpu, p));
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCT: extern "C" fn() = construct;

/// Whether what the constructor wrote is still there; frees it.
#[unsafe(no_mangle)]
pub extern "C" fn early_check() -> i32 {
    let (gpu, p) = GPU.get().expect("the constructor ran");
    let same = gpu.read(*p, 20 << 20) == victim::pattern(5, 20 << 20);
    gpu.free(*p);
    gpu.works(6, 20 << 20);
    i32::from(same)
}
