//! Memory that one process of a job shares with the others: requests to the launcher, which keeps the descriptors.
//!
//! A process that is asked for a handle of its memory leaves the descriptors of the memory with the launcher, under a token;
//! a process that opens the handle takes them from there. Neither waits for the other, and neither keeps a descriptor
//! or a connection. Each request is one datagram on a fresh `SOCK_SEQPACKET` connection or the next on it, and has one
//! datagram as its answer; descriptors travel beside them. Little-endian, versioned, no pointers.

/// Version of this layout.
pub const VERSION: u16 = 1;
/// Size of every message in bytes.
pub const SIZE: usize = 256;
/// Descriptors in one message at most: few enough for processes that have few left.
pub const BATCH: usize = 16;
/// Pieces of one allocation at most: more descriptors than that no launcher will hold.
pub const MOST: usize = 1 << 16;

/// What an allocation is left and taken by: random, never used twice.
pub type Token = [u8; 16];

/// What a message asks or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// I am going to leave this allocation. Answer: [`Op::Done`].
    Offer = 1,
    /// Here are the next pieces of it. Answer: [`Op::Done`]; with the last piece the allocation can be taken.
    Add = 2,
    /// What is this allocation? Answer: [`Op::Facts`].
    Ask = 3,
    /// Its pieces from `first` on. Answer: [`Op::Pieces`], one batch.
    Take = 4,
    /// It is to be forgotten; only its owner may say so. Answer: [`Op::Done`].
    Withdraw = 5,
    /// Done.
    Done = 16,
    /// The allocation's facts.
    Facts = 17,
    /// Pieces, with their descriptors.
    Pieces = 18,
    /// There is no such allocation: never left, withdrawn, or its owner is dead.
    Unknown = 19,
    /// Not possible: no descriptors left, or a request out of turn.
    Refused = 20,
}

impl Op {
    fn from_number(n: u16) -> Option<Op> {
        use Op::*;
        [
            Offer, Add, Ask, Take, Withdraw, Done, Facts, Pieces, Unknown, Refused,
        ]
        .into_iter()
        .find(|op| *op as u16 == n)
    }
}

/// What is known of a shared allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Bytes that its owner asked for.
    pub size: u64,
    /// Where it begins in the first piece, bytes.
    pub offset: u64,
    /// UUID of its device.
    pub device: [u8; 16],
    /// Pieces.
    pub pieces: u32,
}

/// A whole physical handle, mapped one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes; a multiple of 2 MiB.
    pub size: u64,
    /// Whether it is in host memory.
    pub on_host: bool,
}

/// A request or an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which.
    pub op: Op,
    /// Whose.
    pub token: Token,
    /// With [`Op::Offer`] and [`Op::Facts`].
    pub facts: Facts,
    /// With [`Op::Take`]: the first piece wanted.
    pub first: u32,
    /// With [`Op::Add`] and [`Op::Pieces`]: at most [`BATCH`], a descriptor for each.
    pub pieces: Vec<Piece>,
}

impl Message {
    /// A message without facts and pieces.
    pub fn new(op: Op, token: Token) -> Message {
        Message {
            op,
            token,
            facts: Facts::default(),
            first: 0,
            pieces: Vec::new(),
        }
    }

    /// The message as a datagram. Pieces beyond [`BATCH`] are left out.
    pub fn encode(&self) -> [u8; SIZE] {
        let mut out = [0u8; SIZE];
        let pieces = &self.pieces[..self.pieces.len().min(BATCH)];
        out[0..2].copy_from_slice(&VERSION.to_le_bytes());
        out[2..4].copy_from_slice(&(self.op as u16).to_le_bytes());
        out[4..8].copy_from_slice(&self.first.to_le_bytes());
        out[8..24].copy_from_slice(&self.token);
        out[24..32].copy_from_slice(&self.facts.size.to_le_bytes());
        out[32..40].copy_from_slice(&self.facts.offset.to_le_bytes());
        out[40..56].copy_from_slice(&self.facts.device);
        out[56..60].copy_from_slice(&self.facts.pieces.to_le_bytes());
        out[60..64].copy_from_slice(&(pieces.len() as u32).to_le_bytes());
        for (i, piece) in pieces.iter().enumerate() {
            // Sizes are multiples of 2 MiB: the lowest bit is free.
            let word = piece.size | u64::from(piece.on_host);
            out[64 + 8 * i..72 + 8 * i].copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// The message in a datagram, or `None` for another version, size or kind.
    pub fn decode(bytes: &[u8]) -> Option<Message> {
        let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
        let u16_at = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        let u32_at = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().unwrap());
        let u64_at = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().unwrap());
        let count = u32_at(60) as usize;
        if u16_at(0) != VERSION || count > BATCH {
            return None;
        }
        Some(Message {
            op: Op::from_number(u16_at(2))?,
            first: u32_at(4),
            token: bytes[8..24].try_into().unwrap(),
            facts: Facts {
                size: u64_at(24),
                offset: u64_at(32),
                device: bytes[40..56].try_into().unwrap(),
                pieces: u32_at(56),
            },
            pieces: (0..count)
                .map(|i| u64_at(64 + 8 * i))
                .map(|word| Piece {
                    size: word & !1,
                    on_host: word & 1 != 0,
                })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_wire() {
        let message = Message {
            op: Op::Pieces,
            token: *b"0123456789abcdef",
            facts: Facts {
                size: 1 << 40,
                offset: 512,
                device: [7; 16],
                pieces: 9,
            },
            first: 3,
            pieces: (1..=BATCH as u64)
                .map(|n| Piece {
                    size: n << 21,
                    on_host: n % 2 == 0,
                })
                .collect(),
        };
        assert_eq!(Message::decode(&message.encode()), Some(message));
    }

    #[test]
    fn strange_bytes_are_refused() {
        let good = Message::new(Op::Ask, [1; 16]).encode();
        assert!(Message::decode(&good).is_some());
        assert_eq!(Message::decode(&good[..SIZE - 1]), None);
        for (at, value) in [(0, 9), (2, 99), (60, BATCH as u8 + 1)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(Message::decode(&bad), None, "byte {at} = {value}");
        }
    }
}
