if obj.status == nil or obj.status.canary == nil then
  error("there is no canary", 0)
end
-- The operator follows each value once. The object's version makes it new.
local token = "argocd-" .. obj.metadata.resourceVersion
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["fettle.dev/abort"] = obj.status.canary.revision .. "/" .. token
return obj
