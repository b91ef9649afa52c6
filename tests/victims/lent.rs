//! Opens a library that reaches the driver for itself, in the way that `REACH` says.

use victim::sys::{self, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};
use victim::*;

fn main() {
    let scope = if argument(2) == "global" {
        RTLD_GLOBAL
    } else {
        RTLD_LOCAL
    };
    let everything = sys::symbol(
        sys::open(Some(&argument(1)), RTLD_NOW | scope),
        "probe_everything",
    );
    // SAFETY: that is the type of the library's function.
    unsafe { std::mem::transmute::<*mut c_void, extern "C" fn()>(everything)() };
}
