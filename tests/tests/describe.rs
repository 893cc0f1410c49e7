//! A plan can be made before anything is loaded, and is then run exactly.

mod common;

use candle_core::DType;
use common::{COMPONENTS, folder, manager, options, request};
use mm_diffusion::{ZImage, describe};
use mm_plan::{DeviceKind, Machine, Plan, Policy, Strategy, plan};

#[test]
fn a_description_from_headers_is_what_loading_finds() {
    for dtype in [DType::F32, DType::BF16] {
        let described = describe(&folder(), &options(dtype)).unwrap();
        let manager = manager(1 << 30, Strategy::Auto);
        let _pipeline = ZImage::load(&folder(), &options(dtype), &manager).unwrap();
        let loaded: Vec<_> =
            COMPONENTS.iter().map(|name| manager.get_component(name).unwrap().description().clone()).collect();
        assert_eq!(described, loaded);
    }
}

#[test]
fn a_plan_made_from_headers_runs_and_an_altered_one_is_refused() {
    let budget = Some(6 << 20);
    let machine = Machine { device: DeviceKind::Host, vram_free: budget, vram_total: budget, ..Machine::default() };
    let made = plan(&machine, &describe(&folder(), &options(DType::F32)).unwrap(), &Policy::default()).unwrap();
    // As a file would carry it.
    let made: Plan = serde_json::from_value(serde_json::to_value(&made).unwrap()).unwrap();
    let manager = manager(8 << 20, Strategy::Auto);
    let pipeline = ZImage::load(&folder(), &options(DType::F32), &manager).unwrap();
    manager.apply_plan(made.clone()).unwrap();
    pipeline.generate(&request(1), |_| {}).unwrap();
    assert_eq!(*manager.plan().unwrap(), made);
    assert_eq!(manager.memory().peak, made.peak.device);

    let mut altered = made.clone();
    altered.components[1].stacks[0].resident.iter_mut().for_each(|r| *r = true);
    let refusal = manager.apply_plan(altered).unwrap_err().to_string();
    assert!(refusal.contains("transformer"), "{refusal}");
    let mut absent = made;
    absent.components.remove(0);
    let refusal = manager.apply_plan(absent).unwrap_err().to_string();
    assert!(refusal.contains("text_encoder"), "{refusal}");
}
