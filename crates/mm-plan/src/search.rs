//! One choice per component, so that all phases fit and the request takes least: branch and bound.

use crate::{
    frontier::{Choice, Frontier, Room, Score, Steps},
    price::{self, Price},
};
use alloc::{vec, vec::Vec};
use core::cmp::Reverse;

/// More components than this are placed one after the other, without going back.
const DEPTH: usize = 24;

/// With more phases than this nothing stays between them that need not.
const PHASES: usize = 256;
/// Rounds in which a first solution is improved.
const POLISH: usize = 4;

/// A component's placements.
#[derive(Clone, Copy)]
pub(crate) struct Menu<'c> {
    pub(crate) frontier: &'c Frontier<'c, 'c>,
    /// Nothing but this.
    pub(crate) only: Option<Choice>,
    /// Bytes that it may have page-locked.
    pub(crate) host: u64,
}

impl Menu<'_> {
    fn phases(&self) -> impl Iterator<Item = usize> + '_ {
        self.frontier.part.visits.iter().map(|(phase, _)| *phase)
    }

    fn smallest(&self) -> Option<Choice> {
        self.only.or_else(|| self.frontier.smallest())
    }

    /// The fastest choice that fits, and work done to find it.
    fn fastest(&self, room: Room, steps: &mut Steps) -> Option<Choice> {
        match self.only {
            Some(choice) => {
                let fits = u128::from(choice.device()) <= if choice.keep { room.between } else { room.within };
                Some(choice).filter(|_| fits && choice.host <= self.host)
            }
            None => self.frontier.fastest(room, steps),
        }
    }
}

/// One choice per component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Solution {
    pub(crate) picks: Vec<Choice>,
    /// A request, nanoseconds.
    pub(crate) time: u64,
    /// Nothing else on the menus is better.
    pub(crate) complete: bool,
}

/// The best combination that fits `rooms`, the device bytes of each phase; after about so many `steps` the best so far, which is no worse than `known`, a combination
/// that is known to fit. `None`: none fits.
pub(crate) fn solve(menus: &[Menu<'_>], rooms: &[u64], steps: usize, known: Option<&Solution>) -> Option<Solution> {
    let least: Option<Vec<Choice>> = menus.iter().map(Menu::smallest).collect();
    let least = least?;
    let mut search = Search {
        menus,
        rooms,
        used: vec![0; rooms.len()],
        picks: least.clone(),
        least,
        order: Vec::new(),
        best: known.map(|known| (sum(&known.picks), known.picks.clone())),
        is_given: known.is_some(),
        price: Price::default(),
        steps: Steps { done: 0, limit: steps },
    };
    for (menu, choice) in menus.iter().zip(&search.least) {
        occupy(&mut search.used, menu, choice);
    }
    if search.used.iter().zip(rooms).any(|(used, limit)| *used > u128::from(*limit)) {
        return None;
    }
    search.order = search.by_gain()?;
    let deep = menus.len() > DEPTH;
    let fastest: Option<Vec<Choice>> = search.order.clone().into_iter().map(|i| search.fastest(i)).collect();
    // Where all can have what is best for each, there is nothing to search.
    if !search.together(0, &fastest?) {
        if deep {
            search.guess();
        } else {
            search.appraise();
            search.descend(0, Score::default());
        }
    }
    let complete = !deep && !search.steps.are_over();
    let (score, picks) = search.best?;
    let picks = menus.iter().zip(picks).map(|(menu, choice)| menu.frontier.unlocked(choice)).collect();
    Some(Solution { picks, time: score.time, complete })
}

fn occupy(used: &mut [u128], menu: &Menu<'_>, choice: &Choice) {
    if choice.keep {
        used.iter_mut().for_each(|used| *used += u128::from(choice.device()));
    } else {
        menu.phases().for_each(|phase| used[phase] += u128::from(choice.device()));
    }
}

fn vacate(used: &mut [u128], menu: &Menu<'_>, choice: &Choice) {
    if choice.keep {
        used.iter_mut().for_each(|used| *used -= u128::from(choice.device()));
    } else {
        menu.phases().for_each(|phase| used[phase] -= u128::from(choice.device()));
    }
}

struct Search<'c> {
    menus: &'c [Menu<'c>],
    /// Device bytes in each phase.
    rooms: &'c [u64],
    /// Per phase; components not yet decided take their least.
    used: Vec<u128>,
    picks: Vec<Choice>,
    least: Vec<Choice>,
    order: Vec<usize>,
    best: Option<(Score, Vec<Choice>)>,
    /// There was a good solution to begin with.
    is_given: bool,
    /// Of memory that stays taken between phases.
    price: Price,
    steps: Steps,
}

impl Search<'_> {
    /// Those first that gain most from what is left.
    fn by_gain(&mut self) -> Option<Vec<usize>> {
        let mut gains = Vec::with_capacity(self.menus.len());
        for i in 0..self.menus.len() {
            let fastest = self.fastest(i)?;
            gains.push((Reverse(self.least[i].time().saturating_sub(fastest.time())), i));
        }
        gains.sort_unstable();
        Some(gains.into_iter().map(|(_, i)| i).collect())
    }

    /// What component `i` could take in place of what it takes now.
    fn room(&self, i: usize) -> Room {
        let (now, menu) = (self.picks[i], &self.menus[i]);
        let own = u128::from(now.device());
        let slack = |phase: usize| u128::from(self.rooms[phase]).saturating_sub(self.used[phase]);
        let within = menu.phases().map(slack).min().unwrap_or(0) + own;
        // Where it is active it is counted already; elsewhere only if it stays.
        let others = if self.used.len() > PHASES && !now.keep {
            // Too many to look at for each component: nothing more stays on the device.
            0
        } else {
            let others = (0..self.used.len()).filter(|phase| menu.phases().all(|own| own != *phase)).map(slack).min();
            others.map_or(u128::MAX, |slack| if now.keep { slack + own } else { slack })
        };
        Room { between: within.min(others), within, host: menu.host }
    }

    /// What a choice of component `i` takes between phases beyond its least.
    fn taken_by(&self, i: usize, choice: &Choice) -> u128 {
        if choice.keep { choice.device().saturating_sub(self.least[i].device()).into() } else { 0 }
    }

    /// The fastest choice that fits beside what is decided.
    fn fastest(&mut self, i: usize) -> Option<Choice> {
        let room = self.room(i);
        self.steps.done += self.used.len();
        self.menus[i].fastest(room, &mut self.steps)
    }

    fn swap(&mut self, i: usize, from: &Choice, to: &Choice) {
        vacate(&mut self.used, &self.menus[i], from);
        occupy(&mut self.used, &self.menus[i], to);
        self.picks[i] = *to;
    }

    fn is_better(&self, score: Score) -> bool {
        self.best.as_ref().is_none_or(|best| score < best.0)
    }

    /// Decides the components from `level` on; those before are worth `decided`.
    fn descend(&mut self, level: usize, decided: Score) {
        if self.steps.are_over() && self.best.is_some() {
            return;
        }
        let Some(i) = self.order.get(level).copied() else {
            if self.is_better(decided) {
                self.best = Some((decided, self.picks.clone()));
            }
            return;
        };
        // Each for itself: no combination is better.
        let mut fastest = Vec::with_capacity(self.order.len() - level);
        for at in level..self.order.len() {
            let Some(found) = self.fastest(self.order[at]) else { return };
            fastest.push(found);
        }
        let others = decided + sum(&fastest[1..]);
        if !self.is_better(others + fastest[0].score) || self.together(level, &fastest) {
            return;
        }
        let priced = self.priced(level);
        if self.is_too_dear(decided, priced.total, 0) {
            return;
        }
        let menus = self.menus;
        if menus[i].only.is_some() {
            self.decide(level, decided, fastest[0]);
            return;
        }
        // From the fastest down: what stays between phases, and what does not, each time the best in less room than before.
        let (frontier, mut room) = (menus[i].frontier, self.room(i));
        let mut stays = frontier.best_of(true, room, &mut self.steps);
        let mut leaves = frontier.best_of(false, room, &mut self.steps);
        while let Some(next) = stays.into_iter().chain(leaves).min_by_key(|choice| choice.score) {
            if !self.is_better(others + next.score) || self.steps.are_over() {
                break;
            }
            if !self.is_too_dear(decided, priced.others + i128::from(next.time()), self.taken_by(i, &next)) {
                self.decide(level, decided, next);
            }
            let Some(less) = next.device().checked_sub(1) else { break };
            if next.keep {
                room.between = less.into();
                stays = frontier.best_of(true, room, &mut self.steps);
            } else {
                room.within = less.into();
                leaves = frontier.best_of(false, room, &mut self.steps);
            }
        }
    }

    fn decide(&mut self, level: usize, decided: Score, next: Choice) {
        let i = self.order[level];
        let least = self.least[i];
        self.swap(i, &least, &next);
        self.descend(level + 1, decided + next.score);
        self.swap(i, &next, &least);
    }

    /// Takes the fastest of each, if they fit together: then nothing else needs to be looked at.
    fn together(&mut self, level: usize, fastest: &[Choice]) -> bool {
        let order: Vec<usize> = self.order[level..].to_vec();
        for (i, choice) in order.iter().zip(fastest) {
            let least = self.least[*i];
            self.swap(*i, &least, choice);
        }
        let mut phases = self.used.iter().zip(self.rooms);
        let fits = phases.all(|(used, room)| *used <= u128::from(*room));
        let score = sum(&self.picks);
        if fits && self.is_better(score) {
            self.best = Some((score, self.picks.clone()));
        }
        for (i, choice) in order.iter().zip(fastest) {
            let least = self.least[*i];
            self.swap(*i, choice, &least);
        }
        fits
    }

    /// Bytes that can still stay taken between phases.
    fn slack(&self) -> u128 {
        let phases = self.rooms.iter().zip(&self.used);
        phases.map(|(room, used)| u128::from(*room).saturating_sub(*used)).min().unwrap_or(0)
    }

    /// The fastest that component `i` can be if it does not stay between phases.
    fn apart(&mut self, i: usize) -> u64 {
        let room = self.room(i);
        self.menus[i].frontier.best_of(false, room, &mut self.steps).map_or(u64::MAX, |choice| choice.time())
    }

    /// What the components from `level` on take at least, memory that stays taken at its price.
    fn priced(&mut self, level: usize) -> Priced {
        let mut priced = Priced { total: 0, others: 0 };
        for at in level..self.order.len() {
            let i = self.order[at];
            let menu = self.menus[i];
            let time = match menu.only {
                Some(choice) => choice.time().into(),
                None => {
                    let stays = menu.frontier.hull.cheapest(self.price, self.least[i].device());
                    u128::from(self.apart(i)).min(stays.map_or(u128::MAX, |(_, cost)| cost))
                }
            };
            let time = i128::try_from(time).unwrap_or(i128::MAX / 64);
            priced.total += time;
            if at > level {
                priced.others += time;
            }
        }
        priced
    }

    /// Whether everything below, at least `time` with `taken` bytes more staying taken, is slower than the best so far.
    fn is_too_dear(&self, decided: Score, time: i128, taken: u128) -> bool {
        let paid = |bytes: u128| i128::try_from(self.price.of(bytes)).unwrap_or(i128::MAX / 4);
        let bound = i128::from(decided.time) + time + paid(taken) - paid(self.slack());
        self.best.as_ref().is_some_and(|best| bound > i128::from(best.0.time))
    }

    /// Finds the price, and a good solution to begin with.
    fn appraise(&mut self) {
        let menus = self.menus;
        let slack = self.slack();
        let apart: Vec<u64> = (0..menus.len()).map(|i| self.apart(i)).collect();
        let least = &self.least;
        let bound = |price: Price| {
            let cost = |i: usize| {
                let stays = menus[i].frontier.hull.cheapest(price, least[i].device());
                u128::from(apart[i]).min(stays.map_or(u128::MAX, |(_, cost)| cost))
            };
            let sum = (0..menus.len()).filter(|i| menus[*i].only.is_none()).map(cost).fold(0, u128::saturating_add);
            let capped = |value: u128| i128::try_from(value).unwrap_or(i128::MAX);
            capped(sum).saturating_sub(capped(price.of(slack)))
        };
        let prices = menus.iter().filter(|m| m.only.is_none()).flat_map(|m| m.frontier.hull.prices()).collect();
        self.price = price::best(prices, bound);
        if !self.is_given {
            self.guess();
        }
    }

    /// Gives each component in turn what it would buy at the price, if that fits; then, as long as it helps, what is best
    /// beside the others.
    fn guess(&mut self) {
        for at in 0..self.order.len() {
            let i = self.order[at];
            let (menu, least) = (self.menus[i], self.least[i]);
            let wanted = menu.frontier.hull.cheapest(self.price, least.device());
            let room = self.room(i);
            let room = Room { between: room.between.min(wanted.map_or(0, |(bytes, _)| bytes.into())), ..room };
            if let Some(next) = menu.fastest(room, &mut self.steps) {
                self.swap(i, &least, &next);
            }
        }
        for _ in 0..POLISH {
            let before = sum(&self.picks);
            for at in 0..self.order.len() {
                let i = self.order[at];
                let now = self.picks[i];
                if let Some(next) = self.fastest(i).filter(|next| next.score < now.score) {
                    self.swap(i, &now, &next);
                }
            }
            if sum(&self.picks) == before {
                break;
            }
        }
        let score = sum(&self.picks);
        if self.is_better(score) {
            self.best = Some((score, self.picks.clone()));
        }
        for i in 0..self.picks.len() {
            let (now, least) = (self.picks[i], self.least[i]);
            self.swap(i, &now, &least);
        }
    }
}

/// Nanoseconds, memory at its price.
struct Priced {
    /// All components from a level on.
    total: i128,
    /// Without the first of them.
    others: i128,
}

fn sum(choices: &[Choice]) -> Score {
    choices.iter().fold(Score::default(), |sum, choice| sum + choice.score)
}
