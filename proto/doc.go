// Package proto holds the protocol buffers of AI Identity: the resources that
// the control plane serves to extproc over delta ADS and the service that takes
// audit records. The .proto files under aid/v1 are the source; the Go beside
// them is generated (make generate) and committed.
package proto
