-- The commands of `kubectl fettle`, each enabled where the operator would follow it.
local status = obj.status or {}
local annotations = obj.metadata.annotations or {}
local canary = status.canary ~= nil
local by_annotation = annotations["fettle.dev/paused"] == "true"
local paused = by_annotation or obj.spec.paused == true
local known = status.desiredRevision ~= nil and status.observedGeneration == obj.metadata.generation

local others = false
for _, record in ipairs(status.revisions or {}) do
  others = others or record.revision ~= status.desiredRevision
end

local actions = {}
actions["promote"] = {["disabled"] = not canary or paused, ["displayName"] = "Promote to the next step"}
actions["promote-full"] = {["disabled"] = not canary or paused, ["displayName"] = "Promote to 100 %"}
actions["abort"] = {["disabled"] = not canary, ["displayName"] = "Abort the rollout"}
actions["retry"] = {["disabled"] = status.failedRevision == nil, ["displayName"] = "Retry the failed revision"}
actions["pause"] = {["disabled"] = paused, ["displayName"] = "Pause the rollout"}
-- What the spec pauses, only a commit resumes.
actions["resume"] = {["disabled"] = not by_annotation or obj.spec.paused == true, ["displayName"] = "Resume the rollout"}
actions["rollback-to"] = {
  ["disabled"] = not (known and (others or status.rollback ~= nil)),
  ["displayName"] = "Roll back to a revision",
  ["params"] = {{["name"] = "revision"}},
}
return actions
