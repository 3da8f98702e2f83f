//! A device of one's own: pages in a file. `cargo run --release -p uhmm --example custom_device`
use std::fs::{File, remove_file};
use std::io::{self, ErrorKind::*};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;
use uhmm::device::{
    CopyInError, CopyOutError, Device, DeviceInfo, DevicePage, PAGE_SIZE, PageData,
};

/// Keeps each page at its number in a file without a name, which ends with the process.
pub struct FileDevice {
    file: File,
    capacity_pages: u32,
    stored_pages: AtomicU64,
    /// Who may use the file: a child of a fork shares it with a parent that may overwrite any page.
    process: u32,
}

impl FileDevice {
    /// A device of `capacity_pages` pages. They take no room on disk until they are stored.
    pub fn new(capacity_pages: u32) -> io::Result<Self> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let process = std::process::id();
        let name = format!("uhmm-{process}-{}", MADE.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        let file = File::create_new(&path)?; // For reading and writing.
        remove_file(path)?;
        Ok(Self {
            file,
            capacity_pages,
            stored_pages: AtomicU64::new(0),
            process,
        })
    }

    fn at(&self, page: DevicePage) -> Option<(&File, u64)> {
        let ours = self.process == std::process::id();
        ours.then_some((&self.file, u64::from(page.0) * PAGE_SIZE as u64))
    }
}

impl Device for FileDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("file", self.capacity_pages)
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        let (file, place) = self.at(page).ok_or(CopyInError::Dead)?;
        let written = file.write_all_at(&from.0, place);
        written.map_err(|error| match error.kind() {
            // The page stays in RAM, or goes to another device, until there is room.
            StorageFull | QuotaExceeded | FileTooLarge | OutOfMemory => CopyInError::Full,
            _ => CopyInError::Dead,
        })?;
        self.stored_pages.fetch_add(1, Relaxed);
        Ok(())
    }

    /// This is the page fault, and a thread waits: nothing here allocates, locks or logs.
    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        let (file, place) = self.at(page).ok_or(CopyOutError::Lost)?;
        let read = file.read_exact_at(&mut to.0, place);
        read.map_err(|error| match error.kind() {
            // The kernel was short of something, and the page is still there.
            OutOfMemory | WouldBlock => CopyOutError::Retry,
            // Better a program that stops than one that computes with wrong bytes.
            _ => CopyOutError::Lost,
        })
    }

    /// The next page of that number is written over this one.
    fn free(&self, _page: DevicePage) {
        self.stored_pages.fetch_sub(1, Relaxed);
    }

    fn stored_bytes(&self) -> u64 {
        self.stored_pages.load(Relaxed) * PAGE_SIZE as u64
    }
}

#[allow(dead_code, reason = "unused by the test that includes this file")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Box::new(FileDevice::new(1 << 16)?);
    let space = uhmm::Builder::new(16 << 20).device(device).build()?;
    let mut region = space.region(64 << 20)?;
    let (words, _) = region.as_mut_slice().as_chunks_mut();
    let start = Instant::now();
    for (i, word) in words.iter_mut().enumerate() {
        *word = i.to_ne_bytes();
    }
    for (i, word) in words.iter().enumerate() {
        assert_eq!(*word, i.to_ne_bytes(), "the file gave back other bytes");
    }
    let (took, now) = (start.elapsed(), space.statistics());
    let [ram, file] = [now.ram_bytes, now.devices[0].stored_bytes].map(|n| n >> 20);
    println!("64 MiB written and read in {took:.2?}: {ram} MiB in RAM, {file} MiB in the file");
    Ok(())
}
