//! The kernel's mappings in a range, from `/proc/self/smaps`: what `maps` says, and the flags.
//!
//! The file is read line by line and no further than the range. The kernel makes it piece by piece, so
//! it is right for mappings that nobody changes meanwhile. What lies below the range is walked too, page
//! tables included: for where time matters, there is `pagemap`.

use crate::proc_files::{ProcError, SMAPS};
use rustix::fd::BorrowedFd;
use rustix::io::{self, Errno};
use rustix::mm::MprotectFlags;
use std::io::{BufRead, BufReader, Error, Read};
use std::ops::Range;

/// One mapping, or the part of it that lies in the range asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// Its addresses.
    pub range: Range<usize>,
    /// As in `maps`: `rw-p`.
    permissions: String,
    /// A file's number, or 0.
    inode: u64,
    /// A file's path, a name in brackets, or nothing.
    name: String,
    /// Names of flags, two letters each, as in `smaps`.
    flags: String,
    /// Bytes of its pages, as in `smaps`.
    pub page_size: Option<usize>,
}

impl Vma {
    /// Whether it has this permission: `r`, `w`, `x`, or `p` for private.
    pub fn may(&self, permission: char) -> bool {
        self.permissions.contains(permission)
    }

    /// Whether it has this flag, of two letters.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.split_ascii_whitespace().any(|has| has == flag)
    }

    /// What the program may do with it.
    pub fn protection(&self) -> MprotectFlags {
        let each = [
            ('r', MprotectFlags::READ),
            ('w', MprotectFlags::WRITE),
            ('x', MprotectFlags::EXEC),
        ];
        let allowed = each.into_iter().filter(|(letter, _)| self.may(*letter));
        allowed.map(|(_, flag)| flag).collect()
    }

    /// Whether it is a file's, or a device's, or the kernel's own.
    pub fn is_backed(&self) -> bool {
        let special = self.name.starts_with('[')
            && !["[heap]", "[stack]"].contains(&self.name.as_str())
            && !self.name.starts_with("[anon:");
        self.inode != 0 || special || ["io", "pf", "mm"].iter().any(|flag| self.has(flag))
    }

    /// Whether it is a file's, with or without a name.
    pub fn is_file(&self) -> bool {
        self.inode != 0
    }

    /// Its name, if somebody has given it one; some kernels do not keep names.
    pub fn given_name(&self) -> Option<&str> {
        self.name.strip_prefix("[anon:")?.strip_suffix(']')
    }
}

/// All mappings that have a byte in `range`, in ascending order, as the file `smaps` has it. One thread
/// at a time.
///
/// # Errors
/// The file cannot be read.
pub fn in_range(smaps: BorrowedFd<'_>, range: &Range<usize>) -> Result<Vec<Vma>, ProcError> {
    let lines = BufReader::with_capacity(1 << 16, FromStart(smaps, 0));
    parse(lines, range).map_err(|error| ProcError::reading(SMAPS, &error))
}

/// A file that is read from its start, and has no position of its own.
struct FromStart<'a>(BorrowedFd<'a>, u64);

impl Read for FromStart<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let read = loop {
            match io::pread(self.0, &mut *to, self.1) {
                Err(Errno::INTR) => {}
                read => break read.map_err(Error::from)?,
            }
        };
        self.1 += read as u64;
        Ok(read)
    }
}

/// The mappings in `range`, by the text of `smaps`, or of `maps`.
pub(crate) fn parse(smaps: impl BufRead, range: &Range<usize>) -> std::io::Result<Vec<Vma>> {
    let mut found: Vec<Vma> = Vec::new();
    let mut inside = false;
    for line in smaps.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(last) = found.last_mut().filter(|_| inside) {
                last.flags = flags.trim().to_owned();
            }
        } else if let Some(size) = line.strip_prefix("KernelPageSize:") {
            if let Some(last) = found.last_mut().filter(|_| inside) {
                let kib = size.trim().strip_suffix(" kB").map(str::parse::<usize>);
                last.page_size = kib.and_then(Result::ok).map(|kib| kib << 10);
            }
        } else if let Some(vma) = header(&line) {
            if vma.range.start >= range.end {
                break;
            }
            inside = vma.range.end > range.start;
            found.extend(inside.then_some(vma));
        }
    }
    for vma in &mut found {
        vma.range.start = vma.range.start.max(range.start);
        vma.range.end = vma.range.end.min(range.end);
    }
    Ok(found)
}

/// The first line of a mapping: `start-end permissions offset device inode name`.
fn header(line: &str) -> Option<Vma> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let permissions = words.next()?.to_owned();
    let inode = words.nth(2)?.parse().ok()?;
    Some(Vma {
        range: start..end,
        permissions,
        inode,
        name: words.next().unwrap_or_default().trim().to_owned(),
        flags: String::new(),
        page_size: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;
    use crate::proc_files::ProcFiles;
    use rustix::mm::MprotectFlags;

    #[test]
    fn the_mappings_of_a_range_are_found_with_their_flags() {
        let map = Mapping::anonymous(8 * 4096, c"uhmm-test").unwrap();
        map.allow_all().unwrap();
        map.refuse_huge_pages(0, map.len());
        map.protect(3 * 4096, 2 * 4096, MprotectFlags::READ)
            .unwrap();
        let at = |page: usize| map.address() + page * 4096;
        let files = ProcFiles::open(0).unwrap();
        let in_range = |range| in_range(files.smaps(), &range).unwrap();
        let found = in_range(at(1)..at(7));
        let ranges: Vec<_> = found.iter().map(|vma| vma.range.clone()).collect();
        assert_eq!(ranges, [at(1)..at(3), at(3)..at(5), at(5)..at(7)]);
        let writable: Vec<_> = found.iter().map(|vma| vma.may('w')).collect();
        assert_eq!(writable, [true, false, true]);
        for vma in &found {
            assert!(vma.may('r') && vma.may('p') && !vma.may('x'), "{vma:?}");
            assert!(vma.has("rd") && vma.has("nh") && !vma.has("lo"), "{vma:?}");
            assert!(!vma.is_backed());
            assert!(vma.given_name().is_none_or(|name| name == "uhmm-test"));
        }
        let protection: Vec<_> = found.iter().map(Vma::protection).collect();
        let all = MprotectFlags::READ | MprotectFlags::WRITE;
        assert_eq!(protection, [all, MprotectFlags::READ, all]);
        assert_eq!(in_range(0..4096), []);
        map.protect(0, 4096, MprotectFlags::empty()).unwrap();
        let again = in_range(at(0)..at(2));
        assert_eq!(again[0].protection(), MprotectFlags::empty(), "read anew");
    }

    #[test]
    fn lines_of_every_kind_are_read() {
        let text = b"\
55d0c2a00000-55d0c2a21000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
VmFlags: rd wr mr mw me ac sd
7f0000000000-7f0000002000 rw-p 00001000 fe:00 1234                       /a/file with spaces
Size:                  8 kB
VmFlags: rd wr mr mw me ac
7f0000002000-7f0000004000 rw-s 00000000 00:01 77                         /dev/zero (deleted)
VmFlags: rd wr sh mr mw me ms
7f0000004000-7f0000006000 rw-p 00000000 00:00 0
VmFlags: rd wr mr mw me lo ac
7f0000006000-7f0000008000 rw-p 00000000 00:00 0                          [anon:a name]
VmFlags: rd wr mr mw me ac um
7f0000008000-7f000000a000 r--p 00000000 00:00 0                          [vvar]
VmFlags: rd mr pf io de dd
\xff\xfe not a mapping
";
        let all = parse(&text[..], &(0..usize::MAX)).unwrap();
        let backed: Vec<_> = all.iter().map(Vma::is_backed).collect();
        assert_eq!(backed, [false, true, true, false, false, true]);
        assert!(all[3].has("lo") && !all[4].has("lo") && all[4].has("um"));
        assert_eq!(all[4].given_name(), Some("a name"));
        assert!(!all[2].may('p') && all[1].may('p'));
        let some = parse(&text[..], &(0x7f0000005000..0x7f0000007000)).unwrap();
        let ranges: Vec<_> = some.into_iter().map(|vma| vma.range).collect();
        assert_eq!(
            ranges,
            [
                0x7f0000005000..0x7f0000006000,
                0x7f0000006000..0x7f0000007000
            ]
        );
    }
}
