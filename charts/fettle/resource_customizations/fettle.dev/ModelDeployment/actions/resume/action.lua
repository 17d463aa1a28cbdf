if obj.metadata.annotations ~= nil then
  obj.metadata.annotations["fettle.dev/paused"] = nil
end
return obj
