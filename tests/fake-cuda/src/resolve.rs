//! Names to addresses. Each room lists what it exports; `dlsym` and `cuGetProcAddress` agree.
use core::ffi::{c_int, c_void};

use greenboost_abi::{
    CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, CU_GET_PROC_ADDRESS_SUCCESS,
    CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND, CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT,
    CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_NOT_FOUND,
};

use crate::abi::{Out, Res, Text};
use crate::config::config;
use crate::gate::{Flavour, Symbol};

static ROOMS: &[&[Symbol]] = &[
    crate::area::SYMBOLS,
    crate::array::SYMBOLS,
    crate::capture::SYMBOLS,
    crate::cell::SYMBOLS,
    crate::context::SYMBOLS,
    crate::copy::SYMBOLS,
    crate::device::SYMBOLS,
    crate::error::SYMBOLS,
    crate::event::SYMBOLS,
    crate::external::SYMBOLS,
    crate::graph::SYMBOLS,
    crate::graph_memory::SYMBOLS,
    crate::green::SYMBOLS,
    crate::handle::SYMBOLS,
    crate::host::SYMBOLS,
    crate::ipc::SYMBOLS,
    crate::launch::SYMBOLS,
    crate::library::SYMBOLS,
    crate::memory::SYMBOLS,
    crate::memset::SYMBOLS,
    crate::module::SYMBOLS,
    crate::node::SYMBOLS,
    crate::node_params::SYMBOLS,
    crate::pointer::SYMBOLS,
    crate::pool::SYMBOLS,
    crate::pool_share::SYMBOLS,
    crate::stream::SYMBOLS,
    crate::vmm::SYMBOLS,
    SYMBOLS,
];

fn symbols() -> impl Iterator<Item = &'static Symbol> {
    ROOMS.iter().flat_map(|room| room.iter())
}

/// The newest variant that both the asker and the driver know; per-thread ones only where asked for.
fn find(name: &str, version: u32, per_thread: bool) -> (*const (), c_int) {
    let driver = config().driver;
    let known = || symbols().filter(|s| s.asked == name && s.since <= driver);
    let newest = |flavour| {
        known()
            .filter(|s| s.flavour == flavour && s.since <= version)
            .max_by_key(|s| s.since)
    };
    let found = per_thread.then(|| newest(Flavour::PerThread)).flatten();
    let found = match (found, newest(Flavour::Legacy)) {
        // The per-thread variants of old functions are younger than the functions: never step back for one.
        (Some(own), Some(legacy)) if own.since < legacy.since => Some(legacy),
        (own, legacy) => own.or(legacy),
    };
    match found {
        Some(symbol) => (symbol.address, CU_GET_PROC_ADDRESS_SUCCESS),
        None if known().next().is_some() => {
            (std::ptr::null(), CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT)
        }
        None => (std::ptr::null(), CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND),
    }
}

fn resolve(name: Text, out: Out<*const ()>, version: c_int, flags: u64) -> Res<c_int> {
    out.check()?;
    out.set(std::ptr::null())?;
    let name = name.get()?;
    if flags > CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let version = u32::try_from(version).map_err(|_| CUDA_ERROR_INVALID_VALUE)?;
    if version > config().driver {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let (address, status) = find(
        name,
        version,
        flags == CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM,
    );
    out.set(address)?;
    Ok(status)
}

api! {
    Nothing cuGetProcAddress { 11030 cuGetProcAddress Legacy } (name: Text, out: Out<*const ()>, version: c_int, flags: u64) |_f| {
        match resolve(name, out, version, flags)? {
            CU_GET_PROC_ADDRESS_SUCCESS => Ok(()),
            _ => Err(CUDA_ERROR_NOT_FOUND),
        }
    }
    Nothing cuGetProcAddress { 12000 cuGetProcAddress_v2 Legacy } (name: Text, out: Out<*const ()>, version: c_int, flags: u64, status: Out<c_int>) |_f| {
        let found = resolve(name, out, version, flags)?;
        status.maybe(found);
        Ok(())
    }
    Nothing cuGetExportTable { 3000 cuGetExportTable Legacy } (table: Out<*const c_void>, id: *const c_void) |_f| {
        let _ = id;
        table.maybe(std::ptr::null());
        Err(CUDA_ERROR_NOT_FOUND)
    }
}
