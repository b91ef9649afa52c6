//! Link options that make the object a stand-in for the driver.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The name under which programs ask for the driver.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    // A preloaded shim exports the same names: calls inside this object must not go through it.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic");
    // Stream workers outlive a dlclose.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
