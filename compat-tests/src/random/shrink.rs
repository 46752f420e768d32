//! Smaller cases that show the same disagreement.

use std::time::{Duration, Instant};

use super::Result;
use super::case::{Case, Value};

/// Makes `case` smaller as long as `shows` says that it shows the disagreement still, for `limit` at the most: operations go, first many at
/// once; then flags, parts of arguments, letters.
///
/// # Errors
/// Those of `shows`.
pub fn shrink(case: Case, limit: Duration, shows: &mut dyn FnMut(&Case) -> Result<bool>) -> Result<Case> {
    let end = Instant::now() + limit;
    let mut best = case;
    loop {
        let before = best.clone();
        let mut chunk = best.ops.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < best.ops.len() && Instant::now() < end {
                let mut candidate = best.clone();
                candidate.ops.drain(at..(at + chunk).min(best.ops.len()));
                if shows(&candidate)? {
                    best = candidate;
                } else {
                    at += chunk;
                }
            }
            if chunk == 1 {
                break;
            }
            chunk = chunk.div_ceil(2);
        }
        let mut at = 0;
        while at < best.flags.len() && Instant::now() < end {
            let mut candidate = best.clone();
            candidate.flags.remove(at);
            if shows(&candidate)? {
                best = candidate;
            } else {
                at += 1;
            }
        }
        for n in 0..best.ops.len() {
            let mut client = best.clone();
            if let Some(op) = client.ops.get_mut(n)
                && op.client != "a"
            {
                "a".clone_into(&mut op.client);
                if Instant::now() < end && shows(&client)? {
                    best = client;
                }
            }
            let mut tried = 0;
            while let Some(candidate) = best.ops.get(n).and_then(|op| smaller(&Value::List(op.args.clone())).into_iter().nth(tried)) {
                if Instant::now() >= end {
                    return Ok(best);
                }
                let mut next = best.clone();
                if let (Some(op), Value::List(args)) = (next.ops.get_mut(n), candidate) {
                    op.args = args;
                }
                // What was tried in vain at this place is not tried again.
                if shows(&next)? { best = next } else { tried += 1 }
            }
        }
        if best == before || Instant::now() >= end {
            return Ok(best);
        }
    }
}

/// What a value may be replaced with to be smaller, the biggest steps first.
fn smaller(value: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    match value {
        Value::Word(_) => {}
        Value::Text(text) => {
            if text.len() > 1 {
                found.push(Value::Text(text.first().map(|byte| vec![*byte]).unwrap_or_default()));
            }
            if text.len() > 8 {
                found.push(Value::Text(text.get(..text.len() / 2).unwrap_or_default().to_vec()));
            }
        }
        Value::List(items) => {
            for n in 0..items.len() {
                let mut fewer = items.clone();
                fewer.remove(n);
                found.push(Value::List(fewer));
            }
            for (n, item) in items.iter().enumerate() {
                for smaller in smaller(item) {
                    let mut changed = items.clone();
                    if let Some(item) = changed.get_mut(n) {
                        *item = smaller;
                    }
                    found.push(Value::List(changed));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_stays() {
        let case = super::super::generate::case(5);
        let wanted = case.ops.iter().find(|op| op.verb == "add").unwrap().clone();
        let shrunk = shrink(case, Duration::from_secs(60), &mut |case| Ok(case.ops.iter().any(|op| op.verb == "add"))).unwrap();
        assert_eq!(shrunk.ops.len(), 1);
        assert_eq!(shrunk.ops[0].verb, wanted.verb);
        assert!(shrunk.ops[0].args.is_empty() && shrunk.flags.is_empty());
    }
}
