if obj.status == nil or obj.status.failedRevision == nil then
  error("there is no failed revision", 0)
end
-- The operator follows each value once. The object's version makes it new.
local token = "argocd-" .. obj.metadata.resourceVersion
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["fettle.dev/retry"] = obj.status.failedRevision .. "/" .. token
return obj
