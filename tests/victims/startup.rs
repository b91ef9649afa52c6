//! Linked to a library that looks names up: such a library is loaded before the program begins.

use victim::sys::{self, RTLD_DEFAULT, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NEXT, RTLD_NOW};
use victim::*;

#[link(name = "probe")]
unsafe extern "C" {
    fn probe_dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    safe fn probe_everything();
}

fn main() {
    for stage in ["before libcuda", "libcuda local", "libcuda global"] {
        match stage {
            "libcuda local" => {
                sys::open(Some(reach::LIBCUDA), RTLD_NOW | RTLD_LOCAL);
            }
            "libcuda global" => {
                sys::open(Some(reach::LIBCUDA), RTLD_NOW | RTLD_GLOBAL);
            }
            _ => {}
        }
        for name in Driver::NAMES.iter().chain(&["malloc", "cuNoSuchFunction"]) {
            let text = c(name);
            for (scope, handle) in [("default", RTLD_DEFAULT), ("next", RTLD_NEXT)] {
                // SAFETY: a pseudo-handle and a C string.
                let p = unsafe { probe_dlsym(handle, text.as_ptr()) };
                assert_eq!(
                    p.is_null(),
                    sys::dl_error().is_some(),
                    "{stage} {name} {scope}"
                );
                println!("{stage}, {name}, {scope}: {}", !p.is_null());
            }
        }
    }
    probe_everything();
}
