//! Linked to libcuda: the loader binds its calls, nobody looks anything up.
#![allow(non_snake_case)]

use victim::*;

macro_rules! link {
    ($($f:ident($($a:ident: $t:ty),* $(,)?);)*) => {
        #[link(name = "cuda")]
        unsafe extern "C" {
            $(fn $f($($a: $t),*) -> CUresult;)*
        }
        fn address(name: &str) -> *mut c_void {
            match name {
                $(stringify!($f) => $f as *mut c_void,)*
                _ => unreachable!("{name}"),
            }
        }
    };
}
driver_functions!(link);

fn main() {
    work::everything(&gpu::Gpu::with(Driver::with(&address)));
}
