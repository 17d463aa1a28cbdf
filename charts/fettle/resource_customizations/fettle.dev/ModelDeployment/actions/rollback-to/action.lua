-- `revision` is one of status.revisions. Without it, the one that served last before the revision that the spec asks for,
-- however often the action is run.
local status = obj.status or {}
local desired = status.desiredRevision
if desired == nil or status.observedGeneration ~= obj.metadata.generation then
  error("the operator has not processed the latest spec, or its model is not ready: there is nothing to roll back from", 0)
end

local target = actionParams["revision"]
local known = {[desired] = true}
local names = {}
local previous = nil
for _, record in ipairs(status.revisions or {}) do
  if not known[record.revision] then
    table.insert(names, record.revision)
  end
  known[record.revision] = true
  if record.revision ~= desired and record.entered ~= nil then
    previous = record.revision
  end
end
if target == nil or target == "" then
  target = previous
  if target ~= nil and status.rollback ~= nil and status.rollback.target == target then
    error("already rolled back to " .. target .. "; to go further back, name a revision", 0)
  end
end
if target == nil or not known[target] then
  error("no such revision in status.revisions: " .. (target or "none served before") .. "; it has: " .. table.concat(names, ", "), 0)
end
if target == desired and status.rollback == nil then
  error("revision " .. target .. " is already the one that the spec asks for", 0)
end

-- The operator follows each value once. The object's version makes it new.
local token = "argocd-" .. obj.metadata.resourceVersion
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["fettle.dev/rollback-to"] = desired .. "/" .. target .. "/" .. token
return obj
