//! An exact judge of countdown: `65,34,56,25=` asks for 25 out of 65, 34 and 56, each used once; one answer is
//! `65-34=31,56-31=25`. Steps stay whole and not negative. A synthetic verifier (sheet 04) that knows partial answers.

/// 1 when the answer is right (`finished`), or when steps made so far are right and can still be completed; else 0.
/// Text that ends inside a step is judged by its whole steps.
pub fn judge(question: &str, answer: &str, finished: bool) -> f64 {
    let Some((mut pool, target)) = read(question) else { return 0.0 };
    let whole = if finished { answer } else { &answer[..answer.rfind(',').map_or(0, |at| at)] };
    let right = whole.is_empty() && !finished || whole.split(',').all(|step| apply(&mut pool, step).is_some());
    let good = right && if finished { pool == [target] } else { reaches(&pool, target) };
    f64::from(u8::from(good))
}

/// Numbers and target of a question.
fn read(question: &str) -> Option<(Vec<i64>, i64)> {
    let numbers: Option<Vec<i64>> = question.trim().trim_end_matches('=').split(',').map(number).collect();
    let mut numbers = numbers?;
    let target = numbers.pop()?;
    (!numbers.is_empty()).then_some((numbers, target))
}
fn number(text: &str) -> Option<i64> {
    let digits = (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}
fn compute(x: i64, sign: u8, y: i64) -> Option<i64> {
    match sign {
        b'+' => Some(x + y),
        b'-' => Some(x - y).filter(|z| *z >= 0),
        b'*' => Some(x * y),
        b'/' if y != 0 && x % y == 0 => Some(x / y),
        _ => None,
    }
}
/// Replace the two numbers of a step by its result.
fn apply(pool: &mut Vec<i64>, step: &str) -> Option<()> {
    let at = step.find(['+', '-', '*', '/'])?;
    let (y, z) = step.get(at + 1..)?.split_once('=')?;
    let (x, y, z) = (number(&step[..at])?, number(y)?, number(z)?);
    for used in [x, y] {
        pool.remove(pool.iter().position(|&p| p == used)?);
    }
    pool.push(compute(x, step.as_bytes()[at], y).filter(|found| *found == z)?);
    Some(())
}
/// Whether all numbers together can make the target. Pools are small: up to six numbers are searched.
fn reaches(pool: &[i64], target: i64) -> bool {
    if let [one] = pool {
        return *one == target;
    }
    if pool.len() > 6 {
        return true;
    }
    for i in 0..pool.len() {
        for j in (0..pool.len()).filter(|&j| j != i) {
            let mut rest: Vec<i64> = (0..pool.len()).filter(|&k| k != i && k != j).map(|k| pool[k]).collect();
            for z in [b'+', b'-', b'*', b'/'].into_iter().filter_map(|sign| compute(pool[i], sign, pool[j])) {
                rest.push(z);
                if reaches(&rest, target) {
                    return true;
                }
                rest.pop();
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn whole_and_partial_answers() {
        let ask = "65,34,56,25=";
        assert_eq!(judge(ask, "65-34=31,56-31=25", true), 1.0);
        let wrong = ["", "65-34=31", "65-34=30,56-31=25", "65-34=31,56-30=26", "56-31=25,65-34=31", "25", "65-34=31,,"];
        for answer in wrong {
            assert_eq!(judge(ask, answer, true), 0.0, "{answer}");
        }
        assert_eq!(judge(ask, "", false), 1.0, "all is open");
        assert_eq!(judge(ask, "65-34=31,", false), 1.0);
        assert_eq!(judge(ask, "65-34=31,56-", false), 1.0, "judged by its whole steps");
        assert_eq!(judge(ask, "65+34=99,", false), 0.0, "99 and 56 do not make 25");
        assert_eq!(judge(ask, "34-65=31,", false), 0.0, "negative");
        assert_eq!(judge("no question", "1+1=2", true), 0.0);
        assert_eq!(judge("8,3,2,4=", "8/2=4,", false), 0.0, "4 and 3 do not make 4");
        assert_eq!(judge("8,4,2,4=", "8/4=2,2*2=4", true), 1.0);
    }
}
