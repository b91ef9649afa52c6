//! A device in use: what it can do here, found out by trying, and its entry in the ledger.

use std::ffi::c_int;
use std::sync::{Mutex, Once, OnceLock};

use greenboost_abi::*;
use greenboost_wire::BACKEND_ENV;
use greenboost_wire::ledger::{self, DeviceFacts, Ledger, Tier, VramLimit};
use greenboost_wire::record::Kind;

use super::chunk::GRAIN;
use super::graphs::Graphs;
use super::small::Slabs;
use super::spare::Spare;
use super::{pinned, placement, steward};
use crate::driver::{self, Location};
use crate::process::Job;
use crate::telemetry;

/// A device that the program allocates on.
pub struct Device {
    /// Ordinal in this process.
    pub ordinal: CUdevice,
    /// Index in the ledger.
    pub index: usize,
    /// How device memory is made; `None` when virtual memory management does not work here.
    pub vram: Option<Location>,
    /// How host memory is made.
    pub host: Host,
    /// Whether chunks can be given to other processes; all are made so then.
    pub exportable: bool,
    /// Freed backing, kept for reuse.
    pub spare: Spare,
    /// Small allocations on the host.
    pub slabs: Slabs,
    /// Memory that the driver holds for graphs.
    pub graphs: Graphs,
    /// Devices that the program let access this one's memory, once for each pair of contexts.
    pub peers: Mutex<Vec<CUdevice>>,
}

/// How host memory is made for a device.
#[derive(Debug, PartialEq, Eq)]
pub enum Host {
    /// As chunks of ranges, on these NUMA nodes, nearest first.
    Nodes(Vec<c_int>),
    /// As registered memory, a whole allocation at a time.
    Pinned,
    /// Not at all: nothing can spill.
    Nowhere,
}

/// Ordinals above this are not placed.
const MOST: usize = 64;
static DEVICES: [OnceLock<Device>; MOST] = [const { OnceLock::new() }; MOST];

/// The device with this ordinal; the first call tries out what it can do. Needs a current context on it.
///
/// `None`: the ledger has no room for it; its memory is not limited then, and the launcher has been told.
///
/// # Errors
/// The driver's, of a query that should not fail; the next call tries again.
pub fn get(job: &'static Job, ordinal: CUdevice) -> driver::Result<Option<&'static Device>> {
    let Some(slot) = usize::try_from(ordinal).ok().and_then(|o| DEVICES.get(o)) else {
        return Ok(None);
    };
    if let Some(device) = slot.get() {
        return Ok(Some(device));
    }
    // Two threads may try at the same time, which is harmless; the first result stays.
    let device = Device::try_out(job, ordinal)?;
    let device = device.map(|device| slot.get_or_init(|| device));
    if device.is_some_and(Device::has_ranges) {
        steward::start(job);
    }
    Ok(device)
}

/// The device, if something was allocated on it before.
pub fn known(ordinal: CUdevice) -> Option<&'static Device> {
    DEVICES.get(usize::try_from(ordinal).ok()?)?.get()
}

/// All devices that something was allocated on.
pub fn all() -> impl Iterator<Item = &'static Device> {
    DEVICES.iter().filter_map(OnceLock::get)
}

/// Index in the ledger of the device with this UUID and so many bytes.
pub fn index(ledger: &Ledger, uuid: [u8; 16], total: u64) -> Option<usize> {
    ledger.device_index(uuid, || DeviceFacts {
        total,
        vram_limit: placement::first_limit(ledger.settings().vram_limit, total),
    })
}

impl Device {
    fn try_out(job: &'static Job, ordinal: CUdevice) -> driver::Result<Option<Device>> {
        let ledger = job.place.ledger();
        let total = driver::total_mem(ordinal)?;
        let (free, _) = driver::mem_info()?;
        let Some(index) = index(ledger, driver::device_uuid(ordinal)?, total) else {
            static SAID: Once = Once::new();
            let why = "the job has too many devices: one of them is not limited";
            SAID.call_once(|| telemetry::say(Kind::Degraded, None, [0; 3], why));
            return Ok(None);
        };
        if ledger.settings().vram_limit == VramLimit::Free {
            let limit = placement::free_limit(total, free + ledger.used(Tier::Vram, index));
            ledger.device(index).refine(limit);
        }
        let vram = device_location(ordinal);
        // For machines where the better way is believed to be at fault, and to try the other one where both work.
        let pinned_only = std::env::var_os(BACKEND_ENV).is_some_and(|v| v == "pinned");
        let host = match vram.filter(|_| !pinned_only).map(|_| host_nodes(ordinal)) {
            Some(nodes) if !nodes.is_empty() => Host::Nodes(nodes),
            _ if pinned::works() => Host::Pinned,
            _ => Host::Nowhere,
        };
        let exportable = exportable(ordinal, vram, &host);
        let limit = ledger.device(index).vram_limit();
        let name = driver::device_name(ordinal).unwrap_or_default();
        let (backend, lack) = match &host {
            Host::Nodes(_) => ("vmm", None),
            Host::Pinned => ("pinned", Some("allocations spill whole and never move")),
            Host::Nowhere => ("plain", Some("nothing can spill")),
        };
        telemetry::say(
            Kind::Device,
            Some(index),
            [total, limit, free],
            &format!("{backend} {name}"),
        );
        if let Some(lack) = lack.filter(|_| ledger.settings().spill) {
            let why = format!("this driver or machine maps no host memory into ranges: {lack}");
            telemetry::say(Kind::Degraded, Some(index), [0; 3], &why);
        }
        let settings = ledger.settings();
        let spare = Spare::new(
            (limit / 16).min(512 << 20),
            (settings.ram_limit / 8).min(2 << 30),
            Some((&job.place, index)),
        );
        Ok(Some(Device {
            ordinal,
            index,
            vram,
            host,
            exportable,
            spare,
            slabs: Slabs::default(),
            graphs: Graphs::default(),
            peers: Mutex::default(),
        }))
    }

    /// Its entry in the ledger.
    pub fn entry<'a>(&self, job: &'a Job) -> &'a ledger::Device {
        job.place.ledger().device(self.index)
    }

    /// Whether allocations may be placed in host memory.
    pub fn can_spill(&self, job: &Job) -> bool {
        self.host != Host::Nowhere && job.place.ledger().settings().spill
    }

    /// Whether allocations are ranges of chunks; otherwise they are the driver's own while VRAM lasts.
    pub fn has_ranges(&self) -> bool {
        self.vram.is_some() && self.host != Host::Pinned
    }

    /// The NUMA nodes that chunks can be made on, nearest first.
    pub fn nodes(&self) -> &[c_int] {
        match &self.host {
            Host::Nodes(nodes) => nodes,
            Host::Pinned | Host::Nowhere => &[],
        }
    }

    /// Makes physical memory for a chunk.
    pub fn make(&self, size: usize, location: Location) -> driver::Result<u64> {
        match self.exportable {
            true => driver::create_for_export(size, location),
            false => driver::create(size, location),
        }
    }

    /// The devices that read and write this one's ranges.
    pub fn users(&self) -> Vec<CUdevice> {
        let mut users = vec![self.ordinal];
        for peer in self.peers.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            if !users.contains(peer) {
                users.push(*peer);
            }
        }
        users
    }

    /// Opens a range to all users. One that was built while a peer was let in may have missed it.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Safety
    /// The range is mapped throughout.
    pub unsafe fn open_to_users(&self, base: u64, span: u64) -> driver::Result<()> {
        let users = self.users();
        if users.len() == 1 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { driver::set_access(base, span as usize, users) }
    }
}

/// How device memory is made here: with `gpuDirectRDMACapable` where that works.
fn device_location(device: CUdevice) -> Option<Location> {
    let has = |a| driver::attribute(a, device).is_ok_and(|v| v != 0);
    if !has(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) {
        return None;
    }
    let rdma = has(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED);
    [rdma, false]
        .map(|rdma| Location::Device { device, rdma })
        .into_iter()
        .find(|location| works(*location, device).unwrap_or(true))
}

/// Whether memory of every kind that ranges are made of can be exported, as seen by doing it.
fn exportable(device: CUdevice, vram: Option<Location>, host: &Host) -> bool {
    let promised = CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED;
    if driver::attribute(promised, device).unwrap_or(0) == 0 {
        return false;
    }
    let nodes = match host {
        Host::Nodes(nodes) => &nodes[..],
        Host::Pinned | Host::Nowhere => &[],
    };
    let tries = |location| match driver::create_for_export(GRAIN as usize, location) {
        Ok(handle) => {
            let exported = driver::export(handle).is_ok();
            // SAFETY: a handle of our own, mapped nowhere.
            let _ = unsafe { driver::release(handle) };
            exported
        }
        // Out of memory right now says nothing about later: then the attribute counts.
        Err(code) => code == CUDA_ERROR_OUT_OF_MEMORY,
    };
    vram.is_some_and(tries) && nodes.iter().all(|node| tries(Location::HostNuma(*node)))
}

/// The host nodes whose memory the device can map, nearest first (PITFALLS 23: some nodes fail; attributes lie).
fn host_nodes(device: CUdevice) -> Vec<c_int> {
    let nearest = driver::attribute(CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, device)
        .unwrap_or(-1)
        .max(0);
    let text = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    let mut nodes = vec![nearest];
    nodes.extend(node_list(&text).into_iter().filter(|n| *n != nearest));
    // Out of memory right now says nothing about later: then the attribute counts.
    let promised = CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
    let promised = driver::attribute(promised, device).is_ok_and(|v| v != 0);
    nodes.retain(|node| works(Location::HostNuma(*node), device).unwrap_or(promised));
    nodes
}

/// `0-1,4` as numbers.
fn node_list(text: &str) -> Vec<c_int> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

/// Makes, maps and opens one grain of memory at this location, and takes it down again. `None`: out of memory.
fn works(location: Location, device: CUdevice) -> Option<bool> {
    let handle = match driver::create(GRAIN as usize, location) {
        Ok(handle) => handle,
        Err(CUDA_ERROR_OUT_OF_MEMORY) => return None,
        Err(_) => return Some(false),
    };
    // SAFETY: a range and a handle of our own, that nothing else knows. What cannot be unmapped keeps its addresses.
    unsafe {
        let good = driver::reserve(GRAIN as usize).is_ok_and(|address| {
            let mapped = driver::map(address, GRAIN as usize, handle).is_ok();
            let open = mapped && driver::set_access(address, GRAIN as usize, [device]).is_ok();
            let free = !mapped || driver::unmap(address, GRAIN as usize).is_ok();
            if free {
                let _ = driver::unreserve(address, GRAIN as usize);
            }
            open && free
        });
        let _ = driver::release(handle);
        Some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_lists() {
        assert_eq!(node_list("0\n"), [0]);
        assert_eq!(node_list("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(node_list(""), []);
        assert_eq!(node_list("x-y,3"), [3]);
    }
}
