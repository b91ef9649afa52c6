//! Another library of NVIDIA's making, in name: its symbols begin with `cu`, and some are called as the driver's are.
#![allow(non_snake_case)]

macro_rules! numbers {
    ($($name:ident $n:literal)*) => {
        $(
            #[unsafe(no_mangle)]
            pub extern "C" fn $name() -> i32 {
                $n
            }
        )*
    };
}
numbers! {
    cublasCreate_v2 11
    cudnnCreate 12
    cuMemAlloc_v2 13
    cuMemFree_v2 14
    cuGetProcAddress_v2 15
    cuPrivate 16
}
