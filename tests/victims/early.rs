//! Linked to a library whose constructor uses CUDA.

#[link(name = "early")]
unsafe extern "C" {
    safe fn early_check() -> i32;
}

fn main() {
    println!("kept: {}", early_check());
}
