//! The checks, and the one list of them.

mod attributes;
mod backing;
mod callback;
mod capture;
mod context;
mod counted;
mod errors;
mod forms;
mod launch;
mod meanwhile;
mod nvml;
mod order;
mod resolve;
mod sizes;
mod span;
mod start;
mod waits;

use crate::told::Told;

/// One thing that the shim relies on.
#[derive(Debug)]
pub struct Check {
    /// What it is called.
    pub name: &'static str,
    /// What is expected, in a line.
    pub expects: &'static str,
    /// Looks.
    pub run: fn(&Told),
}

/// Every check, in the order in which they run.
pub const CHECKS: &[Check] = &[
    Check {
        name: "before_init",
        expects: "before cuInit calls return 3, and the resolver works",
        run: start::before_init,
    },
    Check {
        name: "without_context",
        expects: "without a context: 201, but queries and frees have their own answers",
        run: start::without_context,
    },
    Check {
        name: "mapping_without_context",
        expects: "virtual memory needs no context",
        run: start::mapping_without_context,
    },
    Check {
        name: "resolvers_agree",
        expects: "cuGetProcAddress gives only addresses that dlsym gives for a variant of the name",
        run: resolve::agree,
    },
    Check {
        name: "frees",
        expects: "only the address of an allocation can be freed, once",
        run: errors::frees,
    },
    Check {
        name: "async_frees",
        expects: "cuMemFreeAsync takes cuMemAlloc memory, and nothing else's",
        run: errors::async_frees,
    },
    Check {
        name: "nulls",
        expects: "null where a result goes: ignored or 1, call by call",
        run: errors::nulls,
    },
    Check {
        name: "refusals",
        expects: "zero sizes, odd sizes, parts of handles, too much memory",
        run: errors::refusals,
    },
    Check {
        name: "attributes",
        expects: "cuPointerGetAttribute on cuMemAlloc, VRAM, host and mixed ranges, and past their ends",
        run: attributes::single,
    },
    Check {
        name: "attributes_nowhere",
        expects: "cuPointerGetAttribute on addresses that are not CUDA's: 1",
        run: attributes::nowhere,
    },
    Check {
        name: "attributes_batch",
        expects: "cuPointerGetAttributes differs from the single call as measured",
        run: attributes::batch,
    },
    Check {
        name: "address_ranges",
        expects: "cuMemGetAddressRange gives the size asked for; of a mapped range the handle's",
        run: sizes::ranges,
    },
    Check {
        name: "small_allocations",
        expects: "allocations are 512 bytes apart and come from 2 MiB blocks",
        run: sizes::neighbours,
    },
    Check {
        name: "pitch",
        expects: "a pitch is the next multiple of 512, the size pitch times rows",
        run: sizes::pitch,
    },
    Check {
        name: "span_vram",
        expects: "one call over several handles, holes and parts: VRAM",
        run: span::vram,
    },
    Check {
        name: "span_host",
        expects: "one call over several handles, holes and parts: host memory",
        run: span::host,
    },
    Check {
        name: "span_mixed",
        expects: "one call over several handles, holes and parts: both",
        run: span::mixed,
    },
    Check {
        name: "handles",
        expects: "a handle lives while it is held or mapped; retain gives it back",
        run: span::handles,
    },
    Check {
        name: "mixed_ranges",
        expects: "kernels, copies and memsets cross the seam between VRAM and host memory",
        run: backing::mixed,
    },
    Check {
        name: "aliases",
        expects: "two mappings of a handle are one memory once the writer is done",
        run: backing::aliases,
    },
    Check {
        name: "address_outlives_backing",
        expects: "a range moves to the host and back under its address, bit for bit",
        run: backing::moves,
    },
    Check {
        name: "graph_over_changed_backing",
        expects: "a captured graph follows its range to the host and back",
        run: backing::graph,
    },
    Check {
        name: "pointer_tables",
        expects: "addresses in device memory reach ranges wherever they are backed",
        run: backing::tables,
    },
    Check {
        name: "context_reset",
        expects: "mapped ranges survive a reset of the primary context, allocations do not",
        run: context::reset,
    },
    Check {
        name: "reset_and_registered",
        expects: "after a reset registered memory is unregistered, or refused with 709 or 713 (not measured)",
        run: context::registered,
    },
    Check {
        name: "own_context",
        expects: "mapped ranges belong to no context and survive its destruction",
        run: context::own,
    },
    Check {
        name: "green_context",
        expects: "work of a green context is the primary context's, and so is memory",
        run: context::green,
    },
    Check {
        name: "detach",
        expects: "cuCtxDetach destroys with the last reference",
        run: context::detach,
    },
    Check {
        name: "launch_arguments",
        expects: "parameters lie where cuFuncGetParamInfo says; `extra` buffers are read so",
        run: launch::arguments,
    },
    Check {
        name: "host_callbacks",
        expects: "calls inside cuLaunchHostFunc return 800 (documented)",
        run: callback::refused,
    },
    Check {
        name: "legacy_order",
        expects: "the legacy stream and blocking streams wait for each other, others not",
        run: order::legacy,
    },
    Check {
        name: "synchronise_then_capture",
        expects: "a synchronise that waits already does not harm a capture begun meanwhile",
        run: meanwhile::after_wait,
    },
    Check {
        name: "while_capturing",
        expects: "what a thread may call while somebody captures",
        run: capture::table,
    },
    Check {
        name: "copies_while_capturing",
        expects: "906 on the legacy stream beside a blocking capture, else 0",
        run: capture::forms,
    },
    Check {
        name: "sync_vram_to_vram",
        expects: "synchronous copies inside VRAM do not wait",
        run: waits::vram_to_vram,
    },
    Check {
        name: "sync_host_to_vram",
        expects: "synchronous copies from host-backed ranges wait",
        run: waits::host_to_vram,
    },
    Check {
        name: "sync_vram_to_host",
        expects: "synchronous copies to host-backed ranges wait",
        run: waits::vram_to_host,
    },
    Check {
        name: "sync_host_to_host",
        expects: "synchronous copies between host-backed ranges wait",
        run: waits::host_to_host,
    },
    Check {
        name: "sync_mixed",
        expects: "what a mixed range makes a copy or memset wait for is what it touches",
        run: waits::mixed,
    },
    Check {
        name: "memset_vram",
        expects: "synchronous memsets of VRAM do not wait",
        run: waits::memset_vram,
    },
    Check {
        name: "memset_host",
        expects: "synchronous memsets of host-backed ranges wait",
        run: waits::memset_host,
    },
    Check {
        name: "transfers",
        expects: "copies between ranges and this process's memory wait alike for VRAM and host-backed",
        run: waits::transfers,
    },
    Check {
        name: "async_forms",
        expects: "asynchronous forms never wait, whatever the backing",
        run: waits::asynchronous,
    },
    Check {
        name: "mapping_does_not_wait",
        expects: "creating, mapping, unmapping and releasing do not wait for a kernel",
        run: waits::mapping,
    },
    Check {
        name: "free_waits",
        expects: "cuMemFree waits for the device",
        run: waits::free,
    },
    Check {
        name: "array_sizes",
        expects: "arrays take tiles of 8 rows of 64 bytes; destroyed, they give them back",
        run: counted::arrays,
    },
    Check {
        name: "pinned_host",
        expects: "pinning takes no VRAM, is refused with the codes that the shim counts on, and ends with its context",
        run: counted::pinned,
    },
    Check {
        name: "module_variables",
        expects: "a module's variables take VRAM by the time their address is known, until it is unloaded",
        run: counted::modules,
    },
    Check {
        name: "context_limits",
        expects: "a larger stack takes VRAM at once, a larger heap does not",
        run: counted::limits,
    },
    Check {
        name: "managed",
        expects: "managed memory takes no VRAM when it is allocated, and is freed as any",
        run: counted::managed,
    },
    Check {
        name: "external_memory",
        expects: "importing takes no VRAM, whatever becomes of the import",
        run: counted::external,
    },
    Check {
        name: "memory_info_cost",
        expects: "cuMemGetInfo takes less than a millisecond",
        run: counted::cost,
    },
    Check {
        name: "nvml_processes",
        expects: "lists of processes: entries of 16 bytes, and of 24 in v2 and v3; counts as documented",
        run: nvml::processes,
    },
    Check {
        name: "nvml_uuids",
        expects: "NVML's UUID is CUDA's, and finds the same handle",
        run: nvml::uuids,
    },
    Check {
        name: "nvml",
        expects: "NVML and CUDA tell of the same memory",
        run: nvml::memory,
    },
];
