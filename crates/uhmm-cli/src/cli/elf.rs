//! As much of the ELF format as tells whether a library can be loaded into a program.
//!
//! Files are read, never trusted: every offset and length is checked.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;

/// What every ELF file begins with.
pub const MAGIC: &[u8] = b"\x7fELF";

/// What a program is to the dynamic loader.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not for this machine; what it is instead.
    Foreign(String),
    /// Nothing can be loaded into it.
    Static,
    /// It is loaded by the program at this path.
    Dynamic(OsString),
}

/// Why a file is not a program.
#[derive(Debug)]
pub enum Error {
    /// It cannot be read.
    Io(io::Error),
    /// It is not what it says it is; what is wrong.
    Malformed(&'static str),
}

/// The header's length in 64-bit files.
const HEADER: usize = 64;
/// The length of an entry in the table of segments.
const SEGMENT: usize = 56;
/// The most bytes that Linux takes for the table of segments.
const MAX_TABLE: usize = 65_536;
/// The longest path, its zero byte included.
const PATH_MAX: u64 = 4096;

const EXECUTABLE: u16 = 2;
const SHARED: u16 = 3;
const LOADED_BY: u32 = 3;

const MACHINES: &[(u16, &str)] = &[
    (3, "x86"),
    (8, "mips"),
    (20, "powerpc"),
    (21, "powerpc64"),
    (22, "s390x"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
    (258, "loongarch64"),
];

/// Reads a program. `read_at` fills the buffer with the bytes from an offset on, or fails.
pub fn inspect(read_at: impl Fn(&mut [u8], u64) -> io::Result<()>) -> Result<Kind, Error> {
    let read = |bytes: &mut [u8], offset, what| {
        read_at(bytes, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Malformed(what),
            _ => Error::Io(error),
        })
    };
    // The first 20 bytes have the same layout in every ELF file.
    let mut header = [0; HEADER];
    read(&mut header[..20], 0, "its header is cut short")?;
    if !header.starts_with(MAGIC) {
        return Err(Error::Malformed("it does not begin as ELF files do"));
    }
    let (class, order) = (header[4], header[5]);
    match (class, order) {
        (1, _) => return Ok(Kind::Foreign("a 32-bit program".into())),
        (2, 2) => return Ok(Kind::Foreign("a program for a big-endian machine".into())),
        (2, 1) => {}
        _ => return Err(Error::Malformed("its class is unknown")),
    }
    let machine = u16_at(&header, 18);
    let name = MACHINES
        .iter()
        .find(|(number, _)| *number == machine)
        .map(|(_, name)| *name);
    if name != Some(std::env::consts::ARCH) {
        let name = name.map_or_else(|| format!("machine {machine}"), str::to_owned);
        return Ok(Kind::Foreign(format!("a program for {name}")));
    }
    if ![EXECUTABLE, SHARED].contains(&u16_at(&header, 16)) {
        return Err(Error::Malformed("it is an object file or a core dump"));
    }

    read(&mut header, 0, "its header is cut short")?;
    let (offset, count) = (u64_at(&header, 32), usize::from(u16_at(&header, 56)));
    if usize::from(u16_at(&header, 54)) != SEGMENT || count * SEGMENT > MAX_TABLE {
        return Err(Error::Malformed("its table of segments is malformed"));
    }
    let mut table = vec![0; count * SEGMENT];
    read(&mut table, offset, "its table of segments is cut short")?;
    let Some(loader) = table
        .chunks_exact(SEGMENT)
        .find(|entry| u32_at(entry, 0) == LOADED_BY)
    else {
        return Ok(Kind::Static);
    };
    let (offset, len) = (u64_at(loader, 8), u64_at(loader, 32));
    if !(2..=PATH_MAX).contains(&len) {
        return Err(Error::Malformed("the path of its loader is malformed"));
    }
    let mut path = vec![0; len as usize];
    read(&mut path, offset, "the path of its loader is cut short")?;
    let end = path.iter().position(|byte| *byte == 0);
    path.truncate(end.ok_or(Error::Malformed("the path of its loader has no end"))?);
    Ok(Kind::Dynamic(OsString::from_vec(path)))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of this machine, with one segment that names `loader`.
    fn program(loader: Option<&str>) -> Vec<u8> {
        let (machine, _) = MACHINES
            .iter()
            .find(|m| m.1 == std::env::consts::ARCH)
            .unwrap();
        let mut file = vec![0; HEADER + SEGMENT];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16..18].copy_from_slice(&SHARED.to_le_bytes());
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
        file[54..56].copy_from_slice(&(SEGMENT as u16).to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        if let Some(loader) = loader {
            file[HEADER] = LOADED_BY as u8;
            file[HEADER + 8..][..8].copy_from_slice(&((HEADER + SEGMENT) as u64).to_le_bytes());
            file[HEADER + 32..][..8].copy_from_slice(&(loader.len() as u64 + 1).to_le_bytes());
            file.extend(loader.bytes().chain([0]));
        }
        file
    }

    fn inspect_bytes(file: &[u8]) -> Result<Kind, Error> {
        inspect(|into, offset| {
            let from = usize::try_from(offset)
                .ok()
                .and_then(|offset| file.get(offset..));
            let from = from.and_then(|from| from.get(..into.len()));
            into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    #[test]
    fn static_and_dynamic_programs_are_told_apart() {
        assert_eq!(inspect_bytes(&program(None)).unwrap(), Kind::Static);
        let dynamic = inspect_bytes(&program(Some("/lib/ld.so"))).unwrap();
        assert_eq!(dynamic, Kind::Dynamic("/lib/ld.so".into()));
    }

    #[test]
    fn programs_for_other_machines_are_named() {
        let foreign = |at: usize, bytes: &[u8]| {
            let mut file = program(None);
            file[at..][..bytes.len()].copy_from_slice(bytes);
            match inspect_bytes(&file).unwrap() {
                Kind::Foreign(what) => what,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(foreign(4, &[1]), "a 32-bit program");
        assert_eq!(foreign(5, &[2]), "a program for a big-endian machine");
        assert_eq!(foreign(18, &243u16.to_le_bytes()), "a program for riscv64");
        assert_eq!(
            foreign(18, &999u16.to_le_bytes()),
            "a program for machine 999"
        );
    }

    #[test]
    fn no_cut_and_no_changed_byte_makes_it_panic() {
        let whole = program(Some("/lib64/ld-linux-x86-64.so.2"));
        for len in 0..whole.len() {
            let cut = inspect_bytes(&whole[..len]);
            assert!(matches!(cut, Err(Error::Malformed(_))), "{len}: {cut:?}");
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                let _ = inspect_bytes(&changed);
            }
        }
    }
}
