//! What a pointer is.
use core::ffi::{c_int, c_uint, c_void};

use greenboost_abi::*;

use crate::abi::{In, Out, Res};
use crate::config::config;
use crate::graph_memory::GRAPH;
use crate::host::Sort;
use crate::memory::range;
use crate::phys::{GRANULE, Place};
use crate::va::Owner;
use crate::world::{World, world};

/// `CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE`
const HW_DECOMPRESS_CAPABLE: CUpointer_attribute = 21;

/// The value of an attribute, by its width.
enum Value {
    Word(u64),
    Int(c_int),
    Bool(bool),
    Pair(u64, u32),
}

/// Attributes newer than the driver (or none at all).
fn unknown(attribute: CUpointer_attribute) -> bool {
    !(1..=21).contains(&attribute) || (attribute >= 21 && config().driver < 12080)
}

/// `None`: the address is not one of CUDA's.
fn look(w: &World, va: u64, attribute: CUpointer_attribute) -> Res<Option<Value>> {
    if unknown(attribute) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if let Some((_, m)) = w.space.mapping_of(va) {
        return device(w, va, m, attribute);
    }
    if w.space.reservation_of(va).is_some() {
        return Ok(None);
    }
    Ok(host(w, va, attribute))
}

fn device(
    w: &World,
    va: u64,
    m: &crate::va::Mapping,
    attribute: CUpointer_attribute,
) -> Res<Option<Value>> {
    let driver = m.handle == 0;
    let alloc = w.alloc_of(va).map(|(_, a)| a);
    if driver && alloc.is_none() {
        return Ok(None);
    }
    let (start, size) = range(w, va).unwrap_or((va, 0));
    let mapping = w
        .space
        .mapping_of(va)
        .map_or((va, 0), |(start, m)| (start, m.size));
    let pool = alloc.map_or(0, |a| a.pool);
    let host = m.phys.place == Place::Host;
    Ok(Some(match attribute {
        CU_POINTER_ATTRIBUTE_CONTEXT => {
            Value::Word(alloc.filter(|a| a.pool == 0).map_or(0, |a| a.ctx as u64))
        }
        CU_POINTER_ATTRIBUTE_MEMORY_TYPE => Value::Int(if host {
            CU_MEMORYTYPE_HOST
        } else {
            CU_MEMORYTYPE_DEVICE
        } as c_int),
        CU_POINTER_ATTRIBUTE_DEVICE_POINTER => Value::Word(va),
        CU_POINTER_ATTRIBUTE_HOST_POINTER if m.host != 0 => Value::Word(va),
        CU_POINTER_ATTRIBUTE_HOST_POINTER => return Ok(None),
        CU_POINTER_ATTRIBUTE_P2P_TOKENS if host => return Ok(None),
        CU_POINTER_ATTRIBUTE_P2P_TOKENS => Value::Pair(0, 0),
        CU_POINTER_ATTRIBUTE_SYNC_MEMOPS => Value::Bool(w.is_synchronous(va)),
        CU_POINTER_ATTRIBUTE_BUFFER_ID => Value::Word(alloc.map_or(m.phys.id, |a| a.id)),
        CU_POINTER_ATTRIBUTE_IS_MANAGED => Value::Bool(false),
        CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL => Value::Int(match m.phys.place {
            Place::Device(d) => d as c_int,
            Place::Host => m.rights.iter().position(|r| *r != 0).unwrap_or(0) as c_int,
        }),
        CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE => {
            Value::Bool(driver && pool == 0 && !w.opened.contains_key(&start))
        }
        CU_POINTER_ATTRIBUTE_RANGE_START_ADDR => Value::Word(start),
        CU_POINTER_ATTRIBUTE_RANGE_SIZE => Value::Word(size),
        CU_POINTER_ATTRIBUTE_MAPPED => Value::Bool(true),
        CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES => Value::Word(
            w.handles
                .get(&m.handle)
                .map_or(0, |entry| entry.prop.types as u64),
        ),
        CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE => Value::Bool(
            driver && pool == 0
                || w.handles
                    .get(&m.handle)
                    .is_some_and(|entry| entry.prop.rdma != 0),
        ),
        CU_POINTER_ATTRIBUTE_ACCESS_FLAGS => {
            let here = w.device_here().unwrap_or(0);
            Value::Int(c_int::from(m.rights[here]))
        }
        CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE if pool == GRAPH => Value::Word(0),
        CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE => Value::Word(pool as u64),
        CU_POINTER_ATTRIBUTE_MAPPING_SIZE => Value::Word(mapping.1),
        CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR => Value::Word(mapping.0),
        CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID => Value::Word(m.phys.id),
        HW_DECOMPRESS_CAPABLE => Value::Bool(driver && pool == 0),
        _ => Value::Bool(false),
    }))
}

impl World {
    /// The allocation or mapping that `SYNC_MEMOPS` of an address is kept for.
    fn synchronous_start(&self, va: u64) -> Option<u64> {
        let mapping = || self.space.mapping_of(va).map(|(start, _)| start);
        self.alloc_of(va).map(|(start, _)| start).or_else(mapping)
    }

    /// Whether synchronous operations on these bytes wait because of it: of mapped memory it has no effect (measured).
    pub(crate) fn waits_synchronously(&self, va: u64) -> bool {
        self.alloc_of(va).is_some() && self.is_synchronous(va)
    }

    /// Whether it is set.
    pub(crate) fn is_synchronous(&self, va: u64) -> bool {
        self.synchronous_start(va)
            .is_some_and(|start| self.synchronous.contains(&start))
    }
}

fn host(w: &World, va: u64, attribute: CUpointer_attribute) -> Option<Value> {
    let (start, r) = w.host_range(va)?;
    let managed = r.sort == Sort::Managed;
    Some(match attribute {
        CU_POINTER_ATTRIBUTE_CONTEXT => Value::Word(r.ctx as u64),
        CU_POINTER_ATTRIBUTE_MEMORY_TYPE => Value::Int(if managed {
            CU_MEMORYTYPE_DEVICE
        } else {
            CU_MEMORYTYPE_HOST
        } as c_int),
        CU_POINTER_ATTRIBUTE_DEVICE_POINTER | CU_POINTER_ATTRIBUTE_HOST_POINTER => Value::Word(va),
        CU_POINTER_ATTRIBUTE_P2P_TOKENS => return None,
        CU_POINTER_ATTRIBUTE_BUFFER_ID | CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID => Value::Word(r.id),
        CU_POINTER_ATTRIBUTE_IS_MANAGED => Value::Bool(managed),
        CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL => Value::Int(r.device as c_int),
        CU_POINTER_ATTRIBUTE_RANGE_START_ADDR | CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR => {
            Value::Word(start)
        }
        CU_POINTER_ATTRIBUTE_RANGE_SIZE => Value::Word(r.size),
        CU_POINTER_ATTRIBUTE_MAPPING_SIZE => Value::Word(r.size.next_multiple_of(GRANULE)),
        CU_POINTER_ATTRIBUTE_MAPPED => Value::Bool(true),
        CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES | CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE => {
            Value::Word(0)
        }
        CU_POINTER_ATTRIBUTE_ACCESS_FLAGS => Value::Int(3),
        _ => Value::Bool(false),
    })
}

/// What `cuPointerGetAttributes` says where the single call fails; `None`: nothing is stored (all measured).
fn nothing(w: &World, va: u64, attribute: CUpointer_attribute) -> Option<Value> {
    // Of its own blocks the driver says nothing beyond the allocations in them.
    let reserved = w.space.reservation_of(va);
    let reserved = reserved.filter(|(_, r)| r.owner == Owner::Program);
    Some(match attribute {
        CU_POINTER_ATTRIBUTE_HOST_POINTER
            if look(w, va, CU_POINTER_ATTRIBUTE_MAPPED).is_ok_and(|v| v.is_some()) =>
        {
            Value::Word(0)
        }
        CU_POINTER_ATTRIBUTE_HOST_POINTER => Value::Word(va),
        CU_POINTER_ATTRIBUTE_RANGE_START_ADDR => Value::Word(reserved?.0),
        CU_POINTER_ATTRIBUTE_RANGE_SIZE => Value::Word(reserved?.1.size),
        CU_POINTER_ATTRIBUTE_MEMORY_TYPE | CU_POINTER_ATTRIBUTE_ACCESS_FLAGS => Value::Int(0),
        CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL => Value::Int(-2),
        CU_POINTER_ATTRIBUTE_SYNC_MEMOPS
        | CU_POINTER_ATTRIBUTE_IS_MANAGED
        | CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE
        | CU_POINTER_ATTRIBUTE_MAPPED
        | CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE
        | HW_DECOMPRESS_CAPABLE => Value::Bool(false),
        _ => Value::Word(0),
    })
}

fn store(to: *mut c_void, value: Value) -> Res {
    if to.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: not null; the ABI fixes what each attribute's value points to, and the caller vouches for it.
    unsafe {
        match value {
            Value::Word(v) => to.cast::<u64>().write_unaligned(v),
            Value::Int(v) => to.cast::<c_int>().write_unaligned(v),
            // As wide as an int (measured).
            Value::Bool(v) => to.cast::<u32>().write_unaligned(u32::from(v)),
            Value::Pair(a, b) => {
                to.cast::<u64>().write_unaligned(a);
                to.cast::<u32>().add(2).write_unaligned(b);
            }
        }
    }
    Ok(())
}

api! {
    Init cuPointerGetAttribute { 4000 cuPointerGetAttribute Legacy } (data: *mut c_void, attribute: CUpointer_attribute, va: u64) |_f| {
        let mut w = world();
        let value = look(&w, va, attribute)?.ok_or(CUDA_ERROR_INVALID_VALUE)?;
        // Whoever asks for the tokens is going to let another device in (measured).
        if attribute == CU_POINTER_ATTRIBUTE_P2P_TOKENS
            && let Some(start) = w.synchronous_start(va)
        {
            w.synchronous.insert(start);
        }
        store(data, value)
    }
    Init cuPointerGetAttributes { 7000 cuPointerGetAttributes Legacy } (count: c_uint, attributes: In<CUpointer_attribute>, data: In<*mut c_void>, va: u64) |_f| {
        if count == 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let w = world();
        for i in 0..count as usize {
            let (attribute, to) = (attributes.at(i)?, data.at(i)?);
            // The tokens are not to be had in a batch (measured).
            if to.is_null() || attribute == CU_POINTER_ATTRIBUTE_P2P_TOKENS {
                return Err(CUDA_ERROR_INVALID_VALUE);
            }
            let value = look(&w, va, attribute)?.or_else(|| nothing(&w, va, attribute));
            value.map_or(Ok(()), |value| store(to, value))?;
        }
        Ok(())
    }
    Context cuPointerSetAttribute { 6000 cuPointerSetAttribute Legacy } (value: In<c_uint>, attribute: CUpointer_attribute, va: u64) |_f| {
        if attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let on = value.get()? != 0;
        let mut w = world();
        let Some((start, _)) = w.alloc_of(va) else {
            // Of mapped memory it is refused (measured).
            let mapped = w.space.mapping_of(va).is_some();
            return Err(if mapped { CUDA_ERROR_NOT_SUPPORTED } else { CUDA_ERROR_INVALID_VALUE });
        };
        match on {
            true => w.synchronous.insert(start),
            false => w.synchronous.remove(&start),
        };
        Ok(())
    }
    Context cuMemRangeGetAttribute { 8000 cuMemRangeGetAttribute Legacy } (data: Out<c_int>, size: usize, attribute: c_int, va: u64, len: usize) |_f| {
        let _ = (data, size, attribute, va, len);
        Err(CUDA_ERROR_INVALID_VALUE)
    }
}
