//! A plan's input in JSON: whatever it says it is planned, and what is planned can be simulated.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mm_plan::{Infeasible, Spec};

fuzz_target!(|bytes: &[u8]| {
    let Ok(spec) = serde_json::from_slice::<Spec>(bytes) else { return };
    let written = serde_json::to_vec(&spec).expect("a spec is written");
    assert_eq!(serde_json::from_slice::<Spec>(&written).expect("and read again"), spec);
    match spec.plan() {
        Ok(plan) => {
            let schedule = mm_plan::simulate(&spec.machine, &spec.components, &plan);
            assert!(matches!(schedule, Ok(_) | Err(Infeasible::BadInput { .. })), "{schedule:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
