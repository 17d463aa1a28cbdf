-- The operator follows each value once. The object's version makes it new.
local token = "argocd-" .. obj.metadata.resourceVersion
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["fettle.dev/retry"] = token
return obj
