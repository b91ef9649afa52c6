//! Memory between processes: exported handles; and the descriptors of ranges.
//!
//! The other process is this program again, with the same check and what it has to know in the environment.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Instant;

use greenboost_abi::*;

use crate::bench::{Bench, GRANULE, MIB, host_vmm, must, prop};
use crate::told::Told;

/// What the other process is told; its presence is how a process knows that it is the other one.
const PEER: &str = "CONFORMANCE_PEER";
/// What the first process fills its memory with.
pub(super) const SEED: u64 = 77;

/// What this process was told, if it is the other one.
pub(super) fn peer() -> Option<String> {
    std::env::var(PEER).ok()
}

/// Runs the check in another process; whether all was as expected there. What it found is printed here.
pub(super) fn elsewhere(check: &str, told: &str, descriptor: Option<OwnedFd>) -> bool {
    let own = std::env::current_exe().expect("the path of this program");
    let stdin = descriptor.map_or_else(Stdio::null, Stdio::from);
    let output = Command::new(own)
        .args(["--alone", check])
        .env(PEER, told)
        .stdin(stdin)
        .output()
        .expect("this program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().for_each(|line| match line.strip_prefix('(') {
        Some(line) => println!("(there: {line}"),
        None => println!("there: {line}"),
    });
    let complaint = String::from_utf8_lossy(&output.stderr);
    complaint.lines().for_each(|line| println!("there: {line}"));
    output.status.success()
}

impl Bench {
    /// A handle that may be exported; or what `cuMemCreate` returned.
    fn exportable(&self, size: usize, host: bool) -> Result<u64, i32> {
        let mut prop = prop(host, self.node);
        prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        let mut handle = 0;
        match self.cu.cuMemCreate(Some(&mut handle), size, Some(&prop), 0) {
            0 => Ok(handle),
            code => Err(code),
        }
    }

    fn export(&self, handle: u64) -> Result<OwnedFd, i32> {
        let mut fd = -1;
        match self
            .cu
            .cuMemExportToShareableHandle(Some(&mut fd), handle, 1, 0)
        {
            // SAFETY: the driver made the descriptor for the caller.
            0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            code => Err(code),
        }
    }

    fn import(&self, fd: i32) -> Result<u64, i32> {
        let mut handle = 0;
        match self
            .cu
            .cuMemImportFromShareableHandle(Some(&mut handle), fd as usize, 1)
        {
            0 => Ok(handle),
            code => Err(code),
        }
    }

    pub(super) fn free_bytes(&self) -> usize {
        let mut free = 0;
        must(
            self.cu.cuMemGetInfo_v2(Some(&mut free), None),
            "cuMemGetInfo",
        );
        free
    }

    fn properties(&self, handle: u64) -> CUmemAllocationProp {
        let mut got = prop(false, 0);
        let code = self
            .cu
            .cuMemGetAllocationPropertiesFromHandle(Some(&mut got), handle);
        must(code, "cuMemGetAllocationPropertiesFromHandle");
        got
    }

    /// An attribute as a number.
    pub(super) fn attribute(&self, attribute: i32, p: u64) -> Result<u64, i32> {
        let mut room = [0u8; 32];
        match self.cu.cuPointerGetAttribute(Some(&mut room), attribute, p) {
            0 => Ok(u64::from_le_bytes(
                room[..8].try_into().expect("eight bytes"),
            )),
            code => Err(code),
        }
    }
}

/// The places to look at: VRAM, and host memory where ranges may be backed by it.
fn places(b: &Bench) -> impl Iterator<Item = (bool, &'static str)> {
    let host = host_vmm(&b.cu);
    [(false, "VRAM"), (true, "host")]
        .into_iter()
        .filter(move |(on_host, _)| host || !on_host)
}

pub(super) fn handles(told: &Told) {
    let b = Bench::open();
    let mut yes = 0;
    b.cu.cuDeviceGetAttribute(Some(&mut yes), 103, 0);
    told.is("attribute 103, descriptors supported", yes, 1);
    for (host, place) in places(&b) {
        let size = 32 * MIB;
        let plain = b.create(size, host);
        told.is(
            format!("{place}: export of a handle that was not made for it"),
            b.export(plain).map(drop),
            Err(CUDA_ERROR_INVALID_VALUE),
        );
        must(b.cu.cuMemRelease(plain), "cuMemRelease");
        let before = b.free_bytes();
        let made = match b.exportable(size, host) {
            Ok(handle) => handle,
            Err(code) => {
                told.is(format!("{place}: cuMemCreate for export"), code, 0);
                continue;
            }
        };
        let p = b.reserve(size);
        b.map(p, size, made);
        b.fill(p, size, SEED);
        told.is(
            format!("{place}: allowed handle types"),
            b.attribute(CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES, p),
            Ok(1),
        );
        told.is(
            format!("{place}: legacy capable"),
            b.attribute(CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, p),
            Ok(0),
        );
        let with_one = b.free_bytes();
        let (Ok(fd), Ok(second)) = (b.export(made), b.export(made)) else {
            told.is(format!("{place}: two exports of one handle"), false, true);
            continue;
        };
        let (Ok(one), Ok(two)) = (b.import(fd.as_raw_fd()), b.import(fd.as_raw_fd())) else {
            told.is(
                format!("{place}: two imports in the same process"),
                false,
                true,
            );
            continue;
        };
        told.is(
            format!("{place}: an import in the same process is a handle of its own"),
            one == made,
            false,
        );
        told.note(format!(
            "{place}: two imports are one number: {}",
            one == two
        ));
        told.is(
            format!("{place}: memory taken by the imports"),
            with_one - b.free_bytes(),
            0,
        );
        let got = b.properties(one);
        let wanted = b.properties(made);
        told.is(
            format!("{place}: location of the import"),
            got.location,
            wanted.location,
        );
        told.is(
            format!("{place}: handle types of the import"),
            got.requestedHandleTypes,
            0,
        );
        told.note(format!("{place}: flags of the import {:?}", got.allocFlags));
        let q = b.reserve(size);
        b.map(q, size, one);
        told.is(
            format!("{place}: bytes through the import"),
            b.wrong(q, size, SEED),
            0,
        );
        let mut retained = 0;
        told.is(
            format!("{place}: retain at the import"),
            b.cu.cuMemRetainAllocationHandle(Some(&mut retained), q),
            0,
        );
        told.note(format!(
            "{place}: retain gives the import: {}, the original: {}",
            retained == one,
            retained == made
        ));
        must(b.cu.cuMemRelease(retained), "cuMemRelease");
        // The original goes; the import keeps the memory.
        b.done();
        must(b.cu.cuMemUnmap(p, size), "cuMemUnmap");
        must(b.cu.cuMemRelease(made), "cuMemRelease");
        told.is(
            format!("{place}: bytes after the original is gone"),
            b.wrong(q, size, SEED),
            0,
        );
        b.done();
        must(b.cu.cuMemUnmap(q, size), "cuMemUnmap");
        told.is(
            format!("{place}: releases of the imports"),
            (b.cu.cuMemRelease(one), b.cu.cuMemRelease(two)),
            (0, 0),
        );
        if !host {
            // The descriptor keeps it. (The simulation counts it as free.)
            told.note(format!(
                "{place}: memory is back while a descriptor is open: {}",
                b.free_bytes() == before
            ));
        }
        let third = b.import(second.as_raw_fd());
        told.note(format!("{place}: import of a descriptor alone: {third:?}"));
        if let Ok(third) = third {
            b.map(q, size, third);
            told.is(
                format!("{place}: bytes that a descriptor kept"),
                b.wrong(q, size, SEED),
                0,
            );
            b.done();
            must(b.cu.cuMemUnmap(q, size), "cuMemUnmap");
            must(b.cu.cuMemRelease(third), "cuMemRelease");
        }
        drop((fd, second));
        if !host {
            told.is(
                format!("{place}: memory is back when all is closed"),
                b.free_bytes(),
                before,
            );
        }
        must(b.cu.cuMemAddressFree(p, size), "cuMemAddressFree");
        must(b.cu.cuMemAddressFree(q, size), "cuMemAddressFree");
    }
    let file = File::open("/dev/null").expect("/dev/null");
    told.is(
        "import of a descriptor that is none of the driver's",
        b.import(file.as_raw_fd()),
        Err(CUDA_ERROR_UNKNOWN),
    );
}

/// What it costs that memory may be exported, in remarks: it decides whether all memory is made so.
pub(super) fn costs(told: &Told) {
    let b = Bench::open();
    for (host, place) in places(&b) {
        for (size, count) in [(64 * MIB, 8), (2 * MIB, 64)] {
            let mut took = Vec::new();
            for types in [0, 1, 0, 1] {
                let mut prop = prop(host, b.node);
                prop.requestedHandleTypes = types;
                let mut made = vec![0; count];
                let p = b.reserve(size * count);
                let start = Instant::now();
                for handle in &mut made {
                    must(
                        b.cu.cuMemCreate(Some(handle), size, Some(&prop), 0),
                        "cuMemCreate",
                    );
                }
                let create = start.elapsed();
                for (i, handle) in made.iter().enumerate() {
                    b.map(p + (i * size) as u64, size, *handle);
                }
                let map = start.elapsed() - create;
                let mut export = None;
                if types == 1 {
                    let start = Instant::now();
                    let fds: Vec<OwnedFd> = made
                        .iter()
                        .map(|h| b.export(*h).expect("an export"))
                        .collect();
                    export = Some(start.elapsed());
                    drop(fds);
                }
                let start = Instant::now();
                must(b.cu.cuMemUnmap(p, size * count), "cuMemUnmap");
                for handle in made {
                    must(b.cu.cuMemRelease(handle), "cuMemRelease");
                }
                let release = start.elapsed();
                must(b.cu.cuMemAddressFree(p, size * count), "cuMemAddressFree");
                took.push(format!(
                    "types {types}: create {create:.1?} map {map:.1?} unmap and release {release:.1?} export {export:.1?}"
                ));
            }
            told.note(format!(
                "{place}, {count} times {} MiB: {}",
                size / MIB,
                took.join("; ")
            ));
        }
    }
    told.is("measured", true, true);
}

pub(super) fn processes(told: &Told) {
    if let Some(what) = peer() {
        return import_there(told, what == "host");
    }
    let b = Bench::open();
    for (host, place) in places(&b) {
        for gone in [false, true] {
            let what = if gone { "gone here" } else { "alive here" };
            let size = 32 * MIB;
            let Ok(handle) = b.exportable(size, host) else {
                told.is(format!("{place}: cuMemCreate for export"), false, true);
                continue;
            };
            let p = b.reserve(size);
            b.map(p, size, handle);
            b.fill(p, size, SEED);
            b.done();
            let fd = b.export(handle).expect("an export");
            if gone {
                must(b.cu.cuMemUnmap(p, size), "cuMemUnmap");
                must(b.cu.cuMemRelease(handle), "cuMemRelease");
            }
            told.is(
                format!("{place}, {what}: the other process finds all as expected"),
                elsewhere(
                    "shared_handles",
                    if host { "host" } else { "VRAM" },
                    Some(fd),
                ),
                true,
            );
            if !gone {
                told.is(
                    format!("{place}: what the other process wrote"),
                    b.wrong(p, size, SEED + 1),
                    0,
                );
                b.done();
                must(b.cu.cuMemUnmap(p, size), "cuMemUnmap");
                must(b.cu.cuMemRelease(handle), "cuMemRelease");
            }
            must(b.cu.cuMemAddressFree(p, size), "cuMemAddressFree");
        }
    }
}

fn import_there(told: &Told, host: bool) {
    let b = Bench::open();
    let size = 32 * MIB;
    let before = b.free_bytes();
    told.is(
        "import of descriptor 0, which is a null pointer",
        b.import(0),
        Err(1),
    );
    let fd = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("the descriptor");
    let handle = match b.import(fd.as_raw_fd()) {
        Ok(handle) => handle,
        Err(code) => return told.is("import", code, 0),
    };
    let p = b.reserve(size);
    b.map(p, size, handle);
    told.is("bytes", b.wrong(p, size, SEED), 0);
    told.is("no memory of its own", before - b.free_bytes(), 0);
    let wanted = match host {
        true => CU_MEM_LOCATION_TYPE_HOST_NUMA,
        false => CU_MEM_LOCATION_TYPE_DEVICE,
    };
    told.is("location", b.properties(handle).location.type_, wanted);
    let wanted = if host {
        CU_MEMORYTYPE_HOST
    } else {
        CU_MEMORYTYPE_DEVICE
    };
    told.is(
        "memory type",
        b.attribute(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p),
        Ok(wanted.into()),
    );
    b.fill(p, size, SEED + 1);
    b.done();
    told.is("unmap", b.cu.cuMemUnmap(p, size), 0);
    told.is("release", b.cu.cuMemRelease(handle), 0);
}

/// Descriptors of a range, for other devices' drivers.
pub(super) fn dma_buf(told: &Told) {
    let b = Bench::open();
    let mut yes = 0;
    b.cu.cuDeviceGetAttribute(Some(&mut yes), 124, 0);
    told.note(format!("attribute 124, dma-buf supported: {yes}"));
    let p = b.alloc(4 * MIB);
    let mut ranges = vec![("allocation", p, 4 * MIB)];
    let (vram, seam);
    vram = b.range("V2 V2");
    ranges.push(("two handles", vram.p, 4 * MIB));
    if host_vmm(&b.cu) {
        seam = b.range("V2 H2");
        ranges.push(("VRAM and host", seam.p, 4 * MIB));
        ranges.push(("host", seam.p + GRANULE as u64, GRANULE));
    }
    for (name, p, size) in ranges {
        let mut fd = -1;
        let code =
            b.cu.cuMemGetHandleForAddressRange(Some(&mut fd), p, size, 1, 0);
        told.note(format!("{name}: {code}"));
        if yes == 0 {
            told.is(format!("{name}: refused"), code, CUDA_ERROR_NOT_SUPPORTED);
        } else if name == "allocation" {
            told.is(name, code, 0);
        }
        if code == 0 && fd >= 0 {
            // SAFETY: the driver made the descriptor for the caller.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
