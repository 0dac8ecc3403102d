package provider

// HostOf is for tests of what is outside.
var HostOf = hostOf
