//! The checks, and the one list of them.

mod attributes;
mod backing;
mod callback;
mod capture;
mod context;
mod counted;
mod errors;
mod forms;
mod graph_memory;
mod instances;
mod kernels;
#[path = "../../../../shim/src/tier/staging/kernels/hash.rs"]
mod kernels_hash;
#[path = "../../../../shim/src/tier/staging/kernels/input.rs"]
mod kernels_input;
mod launch;
mod legacy;
mod meanwhile;
mod nodes;
mod nvml;
mod order;
mod peers;
mod pool;
mod pool_ends;
mod pool_told;
mod resolve;
mod rights;
mod share;
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
        name: "captured_forms",
        expects: "every copy and memset that can be captured does on any backing what it does on cuMemAlloc memory",
        run: nodes::captured,
    },
    Check {
        name: "graph_nodes",
        expects: "nodes made by hand work on any backing",
        run: nodes::made,
    },
    Check {
        name: "graph_updates",
        expects: "a memset node may move to any backing, a copy node only within its kind",
        run: nodes::updated,
    },
    Check {
        name: "graph_captures_alike",
        expects: "what is captured twice has its nodes and edges in the same order",
        run: instances::alike,
    },
    Check {
        name: "graph_nodes_tell",
        expects: "nodes tell what they were made from, down to the arguments",
        run: instances::told_again,
    },
    Check {
        name: "graph_parameters",
        expects: "parameters of functions and kernels are told, to their end and no further",
        run: instances::parameters,
    },
    Check {
        name: "graph_clones",
        expects: "a clone's copy nodes go to any backing, and its instances do the same work",
        run: instances::clones,
    },
    Check {
        name: "graph_switches",
        expects: "nodes that are off stay off in an update; destroying an instance does not wait for it",
        run: instances::switches,
    },
    Check {
        name: "graph_rows",
        expects: "one row may change for another",
        run: instances::rows,
    },
    Check {
        name: "graph_memory",
        expects: "graphs reserve memory at their launch or upload; trimming gives back what no graph uses",
        run: graph_memory::reserved,
    },
    Check {
        name: "graph_memory_addresses",
        expects: "what pointer queries and frees say of a graph's allocation, before and after its launch",
        run: graph_memory::addresses,
    },
    Check {
        name: "graph_memory_kept",
        expects: "an allocation that its graph does not free forbids a second launch, unless freed at launch",
        run: graph_memory::kept,
    },
    Check {
        name: "graph_memory_refusals",
        expects: "what allocation and free nodes refuse",
        run: graph_memory::refusals,
    },
    Check {
        name: "graph_memory_waits",
        expects: "neither the attributes nor a trim wait for a kernel",
        run: graph_memory::waits,
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
        name: "granularity",
        expects: "all memory comes in multiples of 2 MiB, exportable or not",
        run: rights::granularity,
    },
    Check {
        name: "access_rights",
        expects: "cuMemSetAccess and cuMemGetAccess, for devices and for the host",
        run: rights::rights,
    },
    Check {
        name: "sync_memops",
        expects: "with SYNC_MEMOPS set, synchronous operations wait (documented)",
        run: rights::sync_memops,
    },
    Check {
        name: "exportable_handles",
        expects: "export and import in one process; an import or a descriptor keeps the memory",
        run: share::handles,
    },
    Check {
        name: "exportable_costs",
        expects: "what exportable memory costs",
        run: share::costs,
    },
    Check {
        name: "shared_handles",
        expects: "an exported handle in another process, while the first has it and after",
        run: share::processes,
    },
    Check {
        name: "legacy_handles",
        expects: "cuIpcGetMemHandle, cuIpcOpenMemHandle and cuIpcCloseMemHandle between two processes",
        run: legacy::legacy,
    },
    Check {
        name: "dma_buf",
        expects: "cuMemGetHandleForAddressRange where dma-buf is supported",
        run: share::dma_buf,
    },
    Check {
        name: "peer_access_one_device",
        expects: "a device is no peer of its own",
        run: peers::one_device,
    },
    Check {
        name: "peer_access",
        expects: "two devices: enabling, disabling, what a free waits for",
        run: peers::two_devices,
    },
    Check {
        name: "nvml",
        expects: "NVML and CUDA tell of the same memory",
        run: nvml::memory,
    },
    Check {
        name: "pool_reserved",
        expects: "a pool reserves at the call, keeps what its threshold says, and gives the rest back when trimmed",
        run: pool::reserved,
    },
    Check {
        name: "pool_order",
        expects: "stream-ordered allocations, frees and trims do not wait, on the device and on the host",
        run: pool::order,
    },
    Check {
        name: "pool_on_host",
        expects: "a pool on a host NUMA node serves kernels and copies once access is set",
        run: pool::on_host,
    },
    Check {
        name: "pool_copies",
        expects: "synchronous copies and memsets inside a device's pool do not wait",
        run: pool::copies,
    },
    Check {
        name: "pool_host_forms",
        expects: "copies that ask for device memory refuse a host pool's, and take pinned memory",
        run: pool::host_forms,
    },
    Check {
        name: "pool_attributes",
        expects: "what the driver says of pool memory, on the device and on the host",
        run: pool_told::attributes,
    },
    Check {
        name: "pool_choice",
        expects: "default and current pools; the same by location on CUDA 13",
        run: pool_told::choice,
    },
    Check {
        name: "pool_frees",
        expects: "pool memory is freed once, by either call, on any stream, without waiting",
        run: pool_ends::frees,
    },
    Check {
        name: "pool_destroyed",
        expects: "a destroyed pool lives on until its last allocation is freed",
        run: pool_ends::destroyed,
    },
    Check {
        name: "pool_reset",
        expects: "pool memory survives a reset of the primary context",
        run: pool_ends::reset,
    },
    Check {
        name: "pool_export",
        expects: "an exportable pool gives a descriptor and pointer data; other pools are refused",
        run: pool_ends::export,
    },
    Check {
        name: "plain_frees_in_order",
        expects: "cuMemFreeAsync of cuMemAlloc memory does not wait",
        run: pool_ends::plain,
    },
    Check {
        name: "shim_scan",
        expects: "the shim's scan finds every aligned word that lies in a range, at every end, and no other",
        run: kernels::planted,
    },
    Check {
        name: "shim_scan_random",
        expects: "of random words it finds those that the CPU finds",
        run: kernels::random,
    },
    Check {
        name: "shim_scan_descriptor",
        expects: "a tensor map holds its address in a word that the scan finds",
        run: kernels::descriptor,
    },
    Check {
        name: "shim_hash",
        expects: "the shim's hash is the same on the CPU, by any number of threads, and sees one bit",
        run: kernels::hashes,
    },
    Check {
        name: "shim_speed",
        expects: "how fast both are",
        run: kernels::speed,
    },
    Check {
        name: "nvml_link",
        expects: "a device is found by its UUID, and what NVML counts on its PCIe link is below the link's rate",
        run: nvml::link,
    },
];
