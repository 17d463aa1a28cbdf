-- Health of an OptimizedModel. The operator decides how it stands, in the conditions Stalled and Reconciling; this reads them.
local health = {status = "Progressing", message = "waiting for the operator"}
local status = obj.status
if status == nil or status.conditions == nil then
  return health
end
if status.observedGeneration ~= nil and status.observedGeneration ~= obj.metadata.generation then
  -- Argo CD does not look again when only the status changes, so this may stay for long after the operator has gone on.
  health.message = "the latest spec was not processed yet when Argo CD last looked: refresh the application"
  return health
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end

local function holds(type)
  return conditions[type] ~= nil and conditions[type].status == "True"
end

local function is(state, type)
  local condition = conditions[type]
  local message = condition.reason
  if condition.message ~= nil and condition.message ~= "" then
    message = message .. ": " .. condition.message
  end
  return {status = state, message = message}
end

if holds("Stalled") then
  return is("Degraded", "Stalled")
end
if holds("Reconciling") then
  return is("Progressing", "Reconciling")
end
if holds("Ready") then
  return is("Healthy", "Ready")
end
return health
