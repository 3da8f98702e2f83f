//! What the program may do with the mappings in a range, and no more: for where it is asked often.
//!
//! Linux 6.11 and later say it at once, mapping by mapping ([`procmap`]). Before, it is read from
//! `/proc/self/maps`, from its first line on; the file is opened for each look, since several threads may look
//! at a time.

use crate::abi::procmap;
use crate::proc_files::{MAPS, ProcError, SMAPS, open_high};
use crate::vmas::{Vma, parse};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use std::ffi::CStr;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use uhmm_core::addr::PAGE_SIZE;

/// What the program may do with a mapping, or with the part of it that lies in the range asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Its addresses.
    pub range: Range<usize>,
    /// It may be read.
    pub read: bool,
    /// It may be written to.
    pub write: bool,
    /// What is written there is seen by whoever maps the same.
    pub shared: bool,
    /// Bytes of its pages, which are more than 4096 if they are reserved huge pages; `None`: not known.
    pub page_size: Option<usize>,
}

/// Calls `each` with each mapping that has a byte in `range`, in ascending order. `maps` is
/// `/proc/self/maps`, opened by this process itself.
///
/// # Errors
/// The file cannot be opened or read; `each` has been called for a part of the range then.
pub fn outlines(
    maps: BorrowedFd<'_>,
    range: &Range<usize>,
    mut each: impl FnMut(Outline),
) -> Result<(), ProcError> {
    let mut at = range.start;
    while at < range.end {
        match procmap::at_or_after(maps, at) {
            Ok(Some(vma)) if vma.range.start < range.end => {
                let start = vma.range.start.max(at);
                at = vma.range.end;
                each(Outline {
                    range: start..at.min(range.end),
                    read: vma.read,
                    write: vma.write,
                    shared: vma.shared,
                    page_size: Some(vma.page_size),
                });
            }
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(_) => return in_text(&(at..range.end), each),
        }
    }
    Ok(())
}

fn in_text(range: &Range<usize>, each: impl FnMut(Outline)) -> Result<(), ProcError> {
    read(MAPS, range)?.iter().map(outline).for_each(each);
    Ok(())
}

fn outline(vma: &Vma) -> Outline {
    Outline {
        range: vma.range.clone(),
        read: vma.may('r'),
        write: vma.may('w'),
        shared: vma.may('s'),
        // Reserved huge pages are a file's, with or without a name.
        page_size: (!vma.is_file()).then_some(PAGE_SIZE),
    }
}

/// Bytes of the pages of the mapping at `address`, where its outline does not say.
///
/// # Errors
/// The file cannot be opened or read.
pub fn page_size(address: usize) -> Result<usize, ProcError> {
    let vmas = read(SMAPS, &(address..address + PAGE_SIZE))?;
    let size = vmas.first().and_then(|vma| vma.page_size);
    Ok(size.unwrap_or(PAGE_SIZE))
}

/// The mappings in a range, by a file that is opened for this look: [`MAPS`] or [`SMAPS`].
pub(crate) fn read(path: &'static CStr, range: &Range<usize>) -> Result<Vec<Vma>, ProcError> {
    let lines = BufReader::new(File::from(open_high(path)?));
    parse(lines, range).map_err(|error| ProcError::reading(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;
    use crate::proc_files::ProcFiles;
    use rustix::mm::MprotectFlags;

    /// Both ways say the same.
    #[test]
    fn mappings_are_told_with_what_may_be_done() {
        let map = Mapping::anonymous(8 * 4096, c"uhmm-test").unwrap();
        map.allow_all().unwrap();
        map.protect(2 * 4096, 4096, MprotectFlags::empty()).unwrap();
        map.protect(3 * 4096, 2 * 4096, MprotectFlags::READ)
            .unwrap();
        let at = |page: usize| map.address() + page * 4096;
        let piece = |range: Range<usize>, read, write| Outline {
            range: at(range.start)..at(range.end),
            read,
            write,
            shared: false,
            page_size: Some(4096),
        };
        let expected = [
            piece(1..2, true, true),
            piece(2..3, false, false),
            piece(3..5, true, false),
            piece(5..7, true, true),
        ];
        let files = ProcFiles::open(0).unwrap();
        let mut found = Vec::new();
        outlines(files.maps(), &(at(1)..at(7)), |is| found.push(is)).unwrap();
        assert_eq!(found, expected);
        found.clear();
        in_text(&(at(1)..at(7)), |is| found.push(is)).unwrap();
        assert_eq!(found, expected);
        let none = |_| panic!("nothing is mapped there");
        outlines(files.maps(), &(0..4096), none).unwrap();
        let past = usize::MAX - 8191;
        outlines(files.maps(), &(past..past + 4096), none).unwrap();
        assert_eq!(page_size(at(0)), Ok(4096));
    }

    #[test]
    fn a_file_may_be_of_huge_pages_and_is_asked() {
        let text = b"\
7f0000000000-7f0000200000 rw-s 00000000 00:0f 1234                       /anon_hugepage (deleted)
Size:               2048 kB
KernelPageSize:     2048 kB
7f0000200000-7f0000202000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
";
        let vmas = parse(&text[..], &(0..usize::MAX)).unwrap();
        let sizes: Vec<_> = vmas.iter().map(|vma| vma.page_size).collect();
        assert_eq!(sizes, [Some(2 << 20), Some(4096)]);
        let outlines: Vec<_> = vmas.iter().map(outline).collect();
        assert_eq!(
            [outlines[0].page_size, outlines[1].page_size],
            [None, Some(4096)]
        );
        assert_eq!([outlines[0].shared, outlines[1].shared], [true, false]);
    }
}
