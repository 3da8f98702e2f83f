//! `mbind`: which NUMA node new pages of a range come from; `move_pages`: to which those that are
//! there go.

use rustix::io::{self, Errno};
use std::ops::Range;

/// Nodes that a mask has room for: as many as Linux can be built for.
const NODES: usize = 1024;
const BITS: usize = libc::c_ulong::BITS as usize;

/// New pages of `range` come from `node`, and from no other.
///
/// # Errors
/// `EINVAL` where there is no such node, where it has no memory, or where this process may not use
/// it; `EPERM` where a filter forbids the call; `ENOSYS` on a kernel without NUMA.
pub fn bind(range: Range<usize>, node: u32) -> io::Result<()> {
    let mut mask = [0; NODES / BITS];
    let node = node as usize;
    *mask.get_mut(node / BITS).ok_or(Errno::INVAL)? |= 1 << (node % BITS);
    mbind(range, libc::MPOL_BIND, &mask)
}

/// New pages of `range` come from the node of the CPU that asks, whatever the thread's own policy.
///
/// # Errors
/// As [`bind`].
pub fn prefer_local(range: Range<usize>) -> io::Result<()> {
    mbind(range, libc::MPOL_LOCAL, &[])
}

/// New pages of `range` come from where the thread's policy says, as at first.
///
/// # Errors
/// As [`bind`].
pub fn take_back(range: Range<usize>) -> io::Result<()> {
    mbind(range, libc::MPOL_DEFAULT, &[])
}

/// Whether neither the memory at `address` nor the thread has a policy.
pub fn is_default(address: usize) -> bool {
    policy_at(address) == Some(libc::MPOL_DEFAULT)
}

/// Whether new pages at `address` come from the node of the CPU that asks.
pub fn is_local(address: usize) -> bool {
    policy_at(address) == Some(libc::MPOL_LOCAL)
}

fn policy_at(address: usize) -> Option<libc::c_int> {
    /// The policy of the memory at an address, not of the thread.
    const MPOL_F_ADDR: libc::c_ulong = 2;
    let mut mode: libc::c_int = 0;
    // SAFETY: the call writes the mode, and no mask, since none is given.
    let result = unsafe {
        let no_mask = std::ptr::null_mut::<libc::c_ulong>();
        let nodes: libc::c_ulong = 0;
        libc::syscall(
            libc::SYS_get_mempolicy,
            &mut mode,
            no_mask,
            nodes,
            address,
            MPOL_F_ADDR,
        )
    };
    (result == 0).then_some(mode)
}

fn mbind(range: Range<usize>, mode: libc::c_int, mask: &[libc::c_ulong]) -> io::Result<()> {
    // The kernel reads one bit less than it is told of; no mask at all is a null pointer.
    let (mask, bits) = match mask {
        [] => (std::ptr::null(), 0),
        mask => (mask.as_ptr(), mask.len() * BITS + 1),
    };
    // SAFETY: sets a policy, and moves or changes no page; the mask has as many bits as are read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            range.start,
            range.len(),
            libc::c_long::from(mode),
            mask,
            bits,
            0,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(super::last_errno()),
    }
}

/// Of `move_pages`: only pages that no other process maps.
const MPOL_MF_MOVE: libc::c_int = 2;

/// Asks the kernel to move the pages at `addresses` to `node`; returns how many are there now. Pages
/// that are busy, or shared with others, stay.
///
/// # Errors
/// `ENODEV` or `EINVAL` where there is no such node, `EPERM` or `ENOSYS` where nobody may.
pub fn move_pages(addresses: &[*mut libc::c_void], node: u32) -> io::Result<usize> {
    let nodes = vec![node as libc::c_int; addresses.len()];
    let mut status = vec![-1; addresses.len()];
    // SAFETY: the three arrays have as many elements as the call is told; moving a page to another
    // node changes no bytes of it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            addresses.len(),
            addresses.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    };
    if result < 0 {
        return Err(super::last_errno());
    }
    Ok(status
        .iter()
        .filter(|&&at| at == node as libc::c_int)
        .count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;

    #[test]
    fn nodes_that_are_not_there_are_refused() {
        let map = Mapping::anonymous(4 * 4096, c"uhmm-test").unwrap();
        let range = map.address()..map.address() + map.len();
        for node in [NODES as u32 - 1, NODES as u32, u32::MAX] {
            // Another errno where a filter forbids the call, or there is no NUMA at all.
            assert!(bind(range.clone(), node).is_err(), "node {node}");
        }
    }

    #[test]
    fn a_policy_is_taken_where_there_are_policies() {
        let map = Mapping::anonymous(4 * 4096, c"uhmm-test").unwrap();
        let range = map.address()..map.address() + map.len();
        match prefer_local(range.clone()) {
            // A filter forbids the call, or there is no NUMA at all: then it is so for both.
            Err(errno) => assert_eq!(bind(range, 0), Err(errno)),
            Ok(()) => {
                let some = (0..NODES as u32).find(|&node| bind(range.clone(), node).is_ok());
                assert!(some.is_some(), "there is a node with memory");
            }
        }
    }
}
