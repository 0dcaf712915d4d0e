"""Decision rules of other benchmark tools beside the gate's: alarms and power on the same recorded blocks."""
