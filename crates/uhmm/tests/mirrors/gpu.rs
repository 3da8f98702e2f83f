//! A device in software: memory of its own, and a mirror by which it reaches the program's.

use crate::world::World;
use std::sync::{Arc, Mutex, MutexGuard};
use uhmm::device::{
    CopyInError, CopyOutError, Device, DeviceInfo, DevicePage, MemoryType, PAGE_SIZE, PageData,
};
use uhmm::mirror::{Mirror, OwnMemory, PageTable};
use uhmm::{DeviceAddr, DeviceId};

/// The device's memory, which the CPU does not map.
#[derive(Clone)]
pub struct Memory(Arc<[Mutex<PageData>]>);

impl Memory {
    pub fn new(pages: usize) -> Self {
        Self((0..pages).map(|_| Mutex::new(PageData::ZERO)).collect())
    }

    /// What the space gets for it.
    pub fn device(&self) -> Box<dyn Device> {
        Box::new(self.clone())
    }

    fn page(&self, page: DevicePage) -> MutexGuard<'_, PageData> {
        self.0[page.0 as usize].lock().unwrap()
    }
}

impl Device for Memory {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("gpu", self.0.len() as u32).memory(MemoryType::Private)
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        self.page(page).0 = from.0;
        Ok(())
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        to.0 = self.page(page).0;
        Ok(())
    }

    fn free(&self, page: DevicePage) {
        // Whoever still reads it would see that it is not his any more.
        self.page(page).0.fill(0xee);
    }

    fn stored_bytes(&self) -> u64 {
        0
    }
}

impl OwnMemory for Memory {
    fn read(&mut self, at: DeviceAddr, offset: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.page(at.page).0[offset..][..to.len()]);
    }

    fn write(&mut self, at: DeviceAddr, offset: usize, from: &[u8]) {
        self.page(at.page).0[offset..][..from.len()].copy_from_slice(from);
    }
}

/// The device: it reads and writes by its table, and faults as it goes.
pub struct Gpu<'a>(pub Mirror<'a, PageTable>);

impl<'a> Gpu<'a> {
    /// The device `device` of the world's space, which has this memory.
    pub fn new(world: &'a World, device: DeviceId, memory: &Memory) -> Self {
        let own = Box::new(memory.clone());
        let table = PageTable::with_memory(world.address, world.len(), own);
        Self(world.mirror_by(Some(device), table))
    }

    /// A page of the world is what was written to it, as the device sees it.
    pub fn check(&self, world: &World, page: usize) {
        let mut found = PageData::ZERO;
        self.0.read(world.at(page), &mut found.0).unwrap();
        world.oracle.check(page, &found);
    }

    /// Writes a page of the world.
    pub fn fill(&self, world: &World, page: usize) {
        let mut data = PageData::ZERO;
        world.oracle.write(page, &mut data);
        self.0.write(world.at(page), &data.0).unwrap();
    }
}

/// Bytes of whole pages.
pub const fn pages(n: usize) -> usize {
    n * PAGE_SIZE
}
