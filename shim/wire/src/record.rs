//! Control records: datagrams of [`SIZE`] bytes that a process sends to its launcher.
//!
//! Little-endian, versioned, no pointers: a launcher that does not know a kind or a version skips the record.

/// Version of this layout.
pub const VERSION: u16 = 1;
/// Size of every record in bytes.
pub const SIZE: usize = 192;
/// Bytes of text in a record; longer texts are cut at a character boundary.
pub const TEXT: usize = 136;

/// What a record says. The comments name the meaning of the numbers `a`, `b` and `c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Kind {
    /// A process initialised CUDA. `a`: driver version (13000 is 13.0); `b`: devices; text: the program's name.
    Hello = 1,
    /// A device came into use. `a`: physical bytes; `b`: VRAM limit; `c`: bytes free when it was first seen;
    /// text: `BACKEND NAME`, for example `vmm NVIDIA H100 80GB HBM3`.
    Device = 2,
    /// The job's first spill on this device. `a`: bytes of the allocation on Host; `b`: bytes of the allocation.
    FirstSpill = 3,
    /// The program was told that memory is out. `a`: bytes it asked for; `b`: bytes on Host; text: which limit.
    OutOfMemory = 4,
    /// Something works less well than it could. Text: what and why.
    Degraded = 5,
    /// The shim found itself broken and takes no new allocations. Text: what.
    Wounded = 6,
    /// A process ends. `a`: bytes in VRAM, `b`: bytes on Host that it held, summed over devices.
    Bye = 7,
    /// The RAM budget refused a piece of host memory. `a`: bytes; text: which bound.
    HostRefused = 8,
    /// Nothing of this process will ever be moved: it uses a driver function that the shim cannot follow. Text: which.
    Frozen = 9,
    /// A call of the program returned an error of the device that ends the context. `a`: the `CUresult`; text: its name.
    DeviceError = 20,
}

impl Kind {
    fn from_number(n: u16) -> Option<Kind> {
        use Kind::*;
        [
            Hello,
            Device,
            FirstSpill,
            OutOfMemory,
            Degraded,
            Wounded,
            Bye,
            HostRefused,
            Frozen,
            DeviceError,
        ]
        .into_iter()
        .find(|k| *k as u16 == n)
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub kind: Kind,
    /// Sender.
    pub pid: u32,
    /// Ledger index of the device it is about, or [`NO_DEVICE`].
    pub device: u32,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time: u64,
    /// See [`Kind`].
    pub a: u64,
    /// See [`Kind`].
    pub b: u64,
    /// See [`Kind`].
    pub c: u64,
    /// See [`Kind`].
    pub text: String,
}

/// [`Record::device`] of a record that is about no device.
pub const NO_DEVICE: u32 = u32::MAX;

impl Record {
    /// The record as a datagram.
    pub fn encode(&self) -> [u8; SIZE] {
        let mut out = [0u8; SIZE];
        out[0..2].copy_from_slice(&VERSION.to_le_bytes());
        out[2..4].copy_from_slice(&(self.kind as u16).to_le_bytes());
        out[4..8].copy_from_slice(&self.pid.to_le_bytes());
        out[8..12].copy_from_slice(&self.device.to_le_bytes());
        out[16..24].copy_from_slice(&self.time.to_le_bytes());
        out[24..32].copy_from_slice(&self.a.to_le_bytes());
        out[32..40].copy_from_slice(&self.b.to_le_bytes());
        out[40..48].copy_from_slice(&self.c.to_le_bytes());
        let mut len = self.text.len().min(TEXT);
        while !self.text.is_char_boundary(len) {
            len -= 1;
        }
        out[12..16].copy_from_slice(&(len as u32).to_le_bytes());
        out[48..48 + len].copy_from_slice(&self.text.as_bytes()[..len]);
        out
    }

    /// The record in a datagram, or `None` for another version, size or kind.
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
        let u16_at = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        let u32_at = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().unwrap());
        let u64_at = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().unwrap());
        if u16_at(0) != VERSION {
            return None;
        }
        let len = u32_at(12) as usize;
        Some(Record {
            kind: Kind::from_number(u16_at(2))?,
            pid: u32_at(4),
            device: u32_at(8),
            time: u64_at(16),
            a: u64_at(24),
            b: u64_at(32),
            c: u64_at(40),
            text: String::from_utf8_lossy(bytes.get(48..48 + len)?).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(text: &str) -> Record {
        Record {
            kind: Kind::FirstSpill,
            pid: 7,
            device: NO_DEVICE,
            time: 1 << 60,
            a: 1,
            b: u64::MAX,
            c: 3,
            text: text.into(),
        }
    }

    #[test]
    fn survives_the_wire() {
        let r = sample("vmm NVIDIA H100 80GB HBM3");
        assert_eq!(Record::decode(&r.encode()), Some(r));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let r = sample(&"ä".repeat(TEXT));
        let back = Record::decode(&r.encode()).unwrap();
        assert_eq!(back.text, "ä".repeat(TEXT / 2));
    }

    #[test]
    fn strange_bytes_are_skipped() {
        let good = sample("x").encode();
        assert_eq!(Record::decode(&good[..SIZE - 1]), None);
        for (at, value) in [(0, 9), (2, 0), (2, 200), (12, 255), (14, 255)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(Record::decode(&bad), None, "byte {at} = {value}");
        }
    }
}
