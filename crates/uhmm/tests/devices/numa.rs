//! Coherent memory on a NUMA node.

use crate::faults::{counting, faults};
use crate::{DEVICE, FIRST, TestDevice, World, alone};
use uhmm::device::DeviceInfo;
use uhmm::{BuildError, Builder, Place};
use uhmm_core::error::BuildError as CoreError;
use uhmm_core::memory_type::MemoryType::Coherent;

fn try_node(node: u32) -> Result<uhmm::Space, BuildError> {
    let info = DeviceInfo::new("test", DEVICE).memory(Coherent).node(node);
    let device = TestDevice::boxed(info).0;
    Builder::new(16 << 20).device(device).build()
}

#[test]
fn memory_of_a_node_is_used() {
    let _alone = alone();
    let space = match try_node(0) {
        Ok(space) => space,
        Err(BuildError::Core(CoreError::NoNode { node: 0 })) => {
            eprintln!("NOT CHECKED: device memory on a NUMA node, of which there are none here");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let world = World::within(space, 300);
    world.write_all();
    world.send(Place::Device(FIRST));
    let _counting = counting(&world.space);
    let before = faults();
    (0..300).for_each(|page| world.poke(page));
    assert_eq!(faults(), before);
    world.check_all();
    world.write_all();
    world.send(Place::Ram);
    world.check_all();
    world.send(Place::Device(FIRST));
    world.space.remove_device(FIRST, crate::SOON).unwrap();
    world.check_all();
}

#[test]
fn a_node_that_is_not_there_is_named() {
    let _alone = alone();
    for node in [999, u32::MAX] {
        let Err(error) = try_node(node) else {
            panic!("node {node} is not there");
        };
        assert!(matches!(error, BuildError::Core(CoreError::NoNode { .. })));
        assert!(
            error.to_string().contains(&format!("node {node}")),
            "{error}"
        );
        // The same while the space is in use, and the space is none the worse for it.
        let space = Builder::new(16 << 20).build().unwrap();
        let info = DeviceInfo::new("test", DEVICE).memory(Coherent).node(node);
        assert!(space.add_device(TestDevice::boxed(info).0).is_err());
        let info = DeviceInfo::new("test", DEVICE).memory(Coherent);
        let added = space.add_device(TestDevice::boxed(info).0);
        assert_eq!(added.unwrap(), FIRST);
        let world = World::within(space, 64);
        world.write_all();
        world.send(Place::Device(FIRST));
        world.check_all();
    }
}
