//! What a graph holds: what its nodes name, and whether an instance of it could become another one. No driver, no locks.

use std::collections::BTreeMap;

use greenboost_abi::*;

use super::map::Handle;

/// An address that nodes of a graph name, inside an allocation of the shim's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The address, as it is named.
    pub address: u64,
    /// Nodes that name it.
    pub nodes: u32,
}

/// What the nodes of an instance name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Each address once, in ascending order.
    pub list: Vec<Named>,
    /// Some node may name more: one whose parameters cannot be read.
    pub unknown: bool,
}

/// What an operand of a copy is to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Device memory: of which device, whether the program mapped it itself.
    Device(CUdevice, bool),
    /// Managed memory.
    Managed,
    /// Memory that the program pinned.
    Pinned,
    /// Other memory of the host's.
    Pageable,
    /// An array.
    Array(usize),
}

/// An operand of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// What it is to the program.
    pub view: View,
    /// Whether the shim has placed it, so that the driver may see something else.
    pub placed: bool,
}

/// What a copy node copies.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    /// As the node has it.
    pub params: CUDA_MEMCPY3D,
    /// Destination and source.
    pub operands: [Operand; 2],
}

// SAFETY: the pointers in it are the program's, and never followed.
unsafe impl Send for Copy {}

impl Copy {
    /// One row of bytes.
    fn is_flat(&self) -> bool {
        self.params.Height <= 1 && self.params.Depth <= 1
    }

    /// Whether a node with plain memory could become this one: its operands stay what they are to the program, and only
    /// one row may change for another (API doc).
    fn may_become(&self, new: &Copy) -> bool {
        let alike = |i: usize| self.operands[i].view == new.operands[i].view;
        let still = || shape(&self.params) == shape(&new.params);
        new.params.WidthInBytes > 0
            && alike(0)
            && alike(1)
            && (self.is_flat() && new.is_flat() || still())
    }

    fn is_placed(&self) -> bool {
        self.operands.iter().any(|o| o.placed)
    }

    /// Whether a node could become this one if the shim had not placed any of the memory, and the shim has.
    pub fn is_placed_otherwise(&self, new: &Copy) -> bool {
        self.may_become(new) && (self.is_placed() || new.is_placed())
    }
}

/// All that tells one copy from another.
fn shape(p: &CUDA_MEMCPY3D) -> [usize; 21] {
    let end = |kind, host, device, array: CUarray, x, y, z, pitch, rows| {
        let at = match kind {
            CU_MEMORYTYPE_HOST => host,
            CU_MEMORYTYPE_ARRAY => array as usize,
            _ => device as usize,
        };
        [kind as usize, at, x, y, z, pitch, rows]
    };
    let mut all = [0; 21];
    all[..7].copy_from_slice(&end(
        p.dstMemoryType,
        p.dstHost as usize,
        p.dstDevice,
        p.dstArray,
        p.dstXInBytes,
        p.dstY,
        p.dstZ,
        p.dstPitch,
        p.dstHeight,
    ));
    all[7..14].copy_from_slice(&end(
        p.srcMemoryType,
        p.srcHost as usize,
        p.srcDevice,
        p.srcArray,
        p.srcXInBytes,
        p.srcY,
        p.srcZ,
        p.srcPitch,
        p.srcHeight,
    ));
    all[14..17].copy_from_slice(&[p.WidthInBytes, p.Height, p.Depth]);
    all
}

/// What is known of one node.
#[derive(Clone, Debug)]
pub struct Node {
    /// The program's handle.
    pub handle: Handle,
    /// Its kind.
    pub kind: CUgraphNodeType,
    /// Addresses inside allocations of the shim's that it names.
    pub names: Vec<u64>,
    /// It may name more.
    pub unknown: bool,
    /// Of a copy.
    pub copy: Option<Box<Copy>>,
    /// What may not change, of a memset of several rows.
    pub fixed: Option<[u64; 6]>,
}

/// A graph as it was read.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Its nodes, in the driver's order.
    pub nodes: Vec<Node>,
    /// Its edges by the numbers of their nodes, in the driver's order. Only of graphs with copies.
    pub edges: Vec<(u32, u32)>,
}

impl Content {
    /// A graph that could not be read.
    pub fn unread() -> Content {
        let node = Node {
            handle: Handle(0),
            kind: -1,
            names: Vec::new(),
            unknown: true,
            copy: None,
            fixed: None,
        };
        Content {
            nodes: vec![node],
            edges: Vec::new(),
        }
    }

    /// Whether there are copies, which are what the driver may refuse to change.
    pub fn has_copies(&self) -> bool {
        self.nodes.iter().any(|n| n.copy.is_some())
    }

    /// Whether an instance of this graph, on plain memory, could be updated to another one, and may not now because of
    /// memory that the shim has placed.
    pub fn may_become(&self, new: &Content) -> bool {
        let copies = || {
            let pairs = self.nodes.iter().zip(&new.nodes);
            pairs.filter_map(|(a, b)| Some((a.copy.as_ref()?, b.copy.as_ref()?)))
        };
        let alike = |(a, b): (&Node, &Node)| a.kind == b.kind && a.fixed == b.fixed;
        self.nodes.len() == new.nodes.len()
            && self.edges == new.edges
            && self.nodes.iter().zip(&new.nodes).all(alike)
            && copies().all(|(a, b)| a.may_become(b))
            && copies().any(|(a, b)| a.is_placed() || b.is_placed())
    }

    /// What its nodes name.
    pub fn names(&self) -> Names {
        let mut count = BTreeMap::new();
        for address in self.nodes.iter().flat_map(|n| &n.names) {
            *count.entry(*address).or_insert(0) += 1;
        }
        Names {
            list: count
                .into_iter()
                .map(|(address, nodes)| Named { address, nodes })
                .collect(),
            unknown: self.nodes.iter().any(|n| n.unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(to: Operand, from: Operand, width: usize, height: usize) -> Node {
        // SAFETY: plain numbers and pointers.
        let mut params: CUDA_MEMCPY3D = unsafe { std::mem::zeroed() };
        (params.WidthInBytes, params.Height, params.Depth) = (width, height, 1);
        Node {
            kind: CU_GRAPH_NODE_TYPE_MEMCPY,
            copy: Some(Box::new(Copy {
                params,
                operands: [to, from],
            })),
            ..node(&[])
        }
    }

    fn node(names: &[u64]) -> Node {
        Node {
            handle: Handle(0),
            kind: CU_GRAPH_NODE_TYPE_KERNEL,
            names: names.to_vec(),
            unknown: false,
            copy: None,
            fixed: None,
        }
    }

    fn graph(nodes: Vec<Node>) -> Content {
        Content {
            nodes,
            edges: vec![(0, 1)],
        }
    }

    #[test]
    fn what_plain_memory_would_allow() {
        let on = |view, placed| Operand { view, placed };
        let (ours, theirs) = (
            on(View::Device(0, false), true),
            on(View::Device(0, false), false),
        );
        let (mapped, far) = (
            on(View::Device(0, true), true),
            on(View::Device(1, false), true),
        );
        let pinned = on(View::Pinned, false);
        let with = |c: Node| graph(vec![node(&[]), c]);
        let may = |a: &Content, b: &Content| a.may_become(b);
        let old = with(copy(ours, theirs, 100, 1));
        assert!(may(&old, &with(copy(theirs, ours, 300, 1))));
        assert!(may(&with(copy(theirs, theirs, 1, 1)), &old));
        // Nothing of the shim's is involved: the driver has its own reasons.
        let plain = with(copy(theirs, theirs, 1, 1));
        assert!(!may(&plain, &plain));
        for other in [mapped, far, pinned] {
            assert!(!may(&old, &with(copy(ours, other, 100, 1))));
            assert!(!may(&old, &with(copy(other, theirs, 100, 1))));
        }
        assert!(!may(&old, &with(copy(ours, theirs, 0, 1))));
        // Several rows stay as they are.
        let rows = with(copy(ours, theirs, 100, 5));
        assert!(may(&rows, &rows));
        assert!(!may(&rows, &with(copy(ours, theirs, 100, 6))));
        assert!(!may(&rows, &old) && !may(&old, &rows));
        // Everything else is alike.
        let more = graph(vec![node(&[]), copy(ours, theirs, 100, 1), node(&[])]);
        assert!(!may(&old, &more));
        let mut turned = old.clone();
        turned.edges = vec![(1, 0)];
        assert!(!may(&old, &turned));
        let mut set = old.clone();
        set.nodes[0].fixed = Some([1; 6]);
        assert!(!may(&old, &set));
        set.nodes[0].kind = CU_GRAPH_NODE_TYPE_MEMSET;
        assert!(!may(&set, &old) && may(&set, &set));
    }

    #[test]
    fn names_are_counted_once_for_each_node() {
        let mut content = graph(vec![node(&[30, 10]), node(&[10]), node(&[])]);
        let named = |address, nodes| Named { address, nodes };
        let names = content.names();
        assert_eq!(names.list, [named(10, 2), named(30, 1)]);
        assert!(!names.unknown);
        content.nodes.push(Content::unread().nodes[0].clone());
        assert!(content.names().unknown);
    }
}
