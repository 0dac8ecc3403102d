package extproc

// ErrCloseStream is for tests: see Config.fault.
var ErrCloseStream = errCloseStream

// SetFault breaks the server's exchanges with f.
func SetFault(c *Config, f func(phase string) error) { c.fault = f }

// Phases are the names passed to a fault, in order.
func Phases() []string {
	return []string{"headers", "identify", "body", "parse", "decide", "record", "enforce", "follow", "inspect", "trailers", "settle"}
}
