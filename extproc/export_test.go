package extproc

// ErrCloseStream is for tests: see Config.fault.
var ErrCloseStream = errCloseStream

// SetFault breaks the server's exchanges as f says.
func SetFault(c *Config, f func(phase string) error) { c.fault = f }

// Phases are the names that a fault is called with, in order.
func Phases() []string {
	return []string{"headers", "identify", "body", "parse", "decide", "record", "enforce", "follow", "inspect", "trailers", "settle"}
}
