//! Law 8: every note's numbers lead to its decision, and every decision has its note. Notes of rule `Cost` are in
//! `explained_cost.rs`.

use crate::{explained_cost, generate::Case};
use mm_plan::{Granularity, Note, Plan, Rule, Strategy};

/// Whether a plan has a note of this code about this component, or about all.
pub(crate) fn has(plan: &Plan, code: &str, component: Option<&str>) -> bool {
    plan.notes.iter().any(|n| n.code == code && n.component.as_deref() == component)
}

/// Checks all notes of a plan.
pub(crate) fn explained(case: &Case, plan: &Plan) {
    for note in &plan.notes {
        assert!(!note.text.is_empty());
        if !explained_cost::rederive(case, plan, note) {
            rederive(case, plan, note);
        }
    }
    let machine = &case.machine;
    let times = machine.links.is_some() && machine.vram_free.is_some() && !case.components.is_empty();
    let cost = case.policy.rule == Some(Rule::Cost) || case.policy.rule.is_none() && machine.links.is_some();
    assert_eq!(plan.rule, if cost && times { Rule::Cost } else { Rule::Threshold });
    // Nothing is said where rule cost was neither asked for nor possible.
    let missed = case.policy.rule == Some(Rule::Cost) && !times;
    assert!(!missed || has(plan, "cost_rule_not_available", None));
    for name in case.policy.resident.keys() {
        let told = |n: &Note| n.code.contains("override") && n.component.as_ref() == Some(name);
        assert!(plan.notes.iter().any(told), "the resident count asked for {name} has its note");
    }
    for planned in &plan.components {
        let asked = *case.policy.strategies.get(&planned.name).unwrap_or(&case.policy.strategy);
        let given = asked != Strategy::Auto && planned.same_as.is_none();
        assert_eq!(has(plan, "strategy_given", Some(&planned.name)), given);
        assert_eq!(has(plan, "alias", Some(&planned.name)), planned.same_as.is_some());
    }
    if plan.rule == Rule::Cost && !has(plan, "cost_threshold_stands", None) {
        explained_cost::explained(case, plan);
    } else {
        by_threshold(case, plan);
    }
}

fn by_threshold(case: &Case, plan: &Plan) {
    assert_eq!(plan.proof, None);
    let has = |code: &str, name: Option<&str>| has(plan, code, name);
    let asked = |name: &str| *case.policy.strategies.get(name).unwrap_or(&case.policy.strategy);
    let auto = plan.notes.iter().any(|n| n.code.starts_with("auto_"));
    for planned in plan.components.iter().filter(|c| c.same_as.is_none()) {
        let name = Some(planned.name.as_str());
        assert!(asked(&planned.name) != Strategy::Auto || auto);
        let component = case.components.iter().find(|c| c.name == planned.name).unwrap();
        let all: usize = component.stacks.iter().map(|s| s.groups.len()).sum();
        let streams = component.granularity != Granularity::Whole && all > 0;
        let counted = has("resident_count", name) || has("resident_override", name);
        assert_eq!(counted, planned.strategy == Strategy::BlockPin && streams);
        let meant_to_stream = matches!(planned.strategy, Strategy::BlockPin | Strategy::GroupOffload);
        assert_eq!(has("indivisible", name), meant_to_stream && !streams);
        if !meant_to_stream && planned.streamed_count() > 0 {
            assert!(has("demoted", name));
        }
        if planned.strategy == Strategy::GroupOffload && planned.resident_count() > 0 {
            assert!(!streams);
        }
    }
    let streams = plan.components.iter().any(|c| c.streamed_count() > 0);
    assert_eq!(plan.notes.iter().any(|n| n.code.starts_with("host_")), streams);
    assert_eq!(has("tightest_phase", None), !plan.phases.is_empty() && plan.budget.is_some());
}

fn rederive(case: &Case, plan: &Plan, note: &Note) {
    let n = |name: &str| *note.numbers.get(name).unwrap_or_else(|| panic!("{} has no `{name}`", note.code));
    let about = || plan.component(note.component.as_deref().unwrap()).unwrap();
    match note.code.as_str() {
        "auto_no_offload" | "auto_model_offload" => {
            assert!(n("bytes") * n("factor_permille") <= n("free") * 1000 && n("need") <= n("free"));
        }
        "auto_no_offload_rejected" | "auto_model_offload_rejected" => {
            assert!(n("bytes") * n("factor_permille") > n("free") * 1000 && n("need") > n("free"));
        }
        "auto_block_pin" => assert!(n("blocks") >= n("min_blocks")),
        "auto_block_pin_rejected" => assert!(n("blocks") < n("min_blocks")),
        "auto_tier" => assert!(case.components.is_empty() && n("free") == case.machine.vram_free.unwrap()),
        "auto_no_device" => assert_eq!(case.machine.vram_free, None),
        "auto_no_free_vram" => assert_eq!(case.machine.vram_free, Some(n("free"))),
        "low_cpu_mem_on" => assert!(plan.low_cpu_mem && n("weights") + n("headroom") > n("ram_available")),
        "low_cpu_mem_off" => assert!(!plan.low_cpu_mem && n("weights") + n("headroom") <= n("ram_available")),
        "ram_warning" => assert!(n("weights") * 1000 > n("ram_available") * n("factor_permille")),
        "strategy_given" => {
            assert_eq!(case.policy.strategies.get(&about().name).unwrap_or(&case.policy.strategy), &about().strategy)
        }
        "resident_count" => {
            let left = n("free").saturating_sub(n("rest") + n("working_set") + n("block"));
            let count = left.checked_div(n("block")).unwrap_or(u64::MAX).min(n("blocks"));
            assert_eq!(n("count"), count);
        }
        "resident_override" => assert_eq!(n("count"), n("asked").min(n("blocks"))),
        "resident_override_ignored" => assert_eq!(n("asked"), u64::from(case.policy.resident[&about().name])),
        "override_ignored" => {
            let alias = plan.component(note.component.as_deref().unwrap()).map(|c| c.same_as.is_some());
            assert_ne!(alias, Some(false));
        }
        "indivisible" => assert_eq!(n("bytes"), about().engine_bytes),
        "alias" => assert!(about().same_as.is_some()),
        "no_offload_released" => assert!(n("need") > n("free")),
        "phase_over_budget" => {
            assert_eq!(n("need"), n("engine_bytes") + n("reserve") + n("activation"));
            assert!(n("need") > n("free"));
        }
        "demoted" => {
            assert!(n("residents_after") < n("residents_before") || n("slots_after") < n("slots_before"));
            assert!(n("engine_bytes_after") < n("engine_bytes_before"));
            // Where several phases demote it, the last note is the final word.
            assert!(about().engine_bytes <= n("engine_bytes_after"));
        }
        "host_page_locked" => assert_eq!((n("wanted"), n("page_locked")), (plan.peak.host, plan.peak.host)),
        "host_limit" => {
            assert!(n("page_locked") == plan.peak.host && n("page_locked") <= n("limit") && n("limit") < n("wanted"))
        }
        "host_low_cpu_mem" => assert!(plan.low_cpu_mem && plan.peak.host == 0),
        "host_mapped" => assert_eq!(plan.peak.host, 0),
        "tightest_phase" => {
            assert!(n("engine_bytes") + n("reserve") + n("activation") <= n("free"));
            assert!(plan.phases.iter().any(|p| p.engine_bytes == n("engine_bytes")));
        }
        "cost_rule_not_available" => {}
        other => panic!("a note of unknown code {other}"),
    }
}
