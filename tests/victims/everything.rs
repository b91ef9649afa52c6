//! Reaches the driver as `REACH` says and does a little of everything.

fn main() {
    victim::work::everything(&victim::gpu::Gpu::open());
}
