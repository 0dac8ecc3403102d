// Package proto holds the protocol buffers of AI Identity. They are the resources that the
// control plane serves to extproc over delta ADS, and the service that receives audit entries.
// The sources are the .proto files under aid/v1. The Go files beside them are generated (make
// generate) and committed.
package proto
