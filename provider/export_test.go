package provider

// HostOf is for the tests in package provider_test.
var HostOf = hostOf
