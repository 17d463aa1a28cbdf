-- What a retry can help: a run that failed for a reason outside of the spec, and candidates that failed. A published model
-- can be retried as well: the operator then checks that its artifacts are whole.
local status = obj.status or {}
local reason = nil
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then
    reason = condition.reason
  end
end

local running = {Preparing = true, Optimizing = true, Measuring = true, Publishing = true}
-- The same tasks would give the same answers: only another spec helps.
local final = {ConstraintsNotMet = true, NotFaster = true, EvaluationTooSmall = true, EvaluationDataMissing = true, InvalidSpec = true}

local failed = false
for _, candidate in ipairs(status.candidates or {}) do
  failed = failed or candidate.state == "Failed"
end

local possible = reason ~= nil and reason ~= "InvalidSpec" and (failed or not (running[reason] or final[reason]))
return {["retry"] = {["disabled"] = not possible, ["displayName"] = "Retry what failed"}}
